"""batchfile: one JSONL of LLM requests in, one JSONL of results out, the bucket is the only state."""

__version__ = "0.1.0"
