"""Which kinds of requests a model serves, by the task that it is loaded for, and the endpoints with their names."""

from collections.abc import Iterable

from batchfile.types import Kind, Task

URLS: dict[Kind, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "score": "/v1/score",
    "rerank": "/v1/rerank",
    "classification": "/v1/classify",
    "pooling": "/v1/pooling",
}
# A model may serve fewer of them: which ones is known when it is loaded.
SERVED: dict[Task, tuple[Kind, ...]] = {
    "generate": ("chat", "completion"),
    "embed": ("embedding", "score", "rerank", "pooling"),
    "classify": ("classification", "score", "rerank", "pooling"),
}


def listed(kinds: Iterable[Kind]) -> str:
    """Their endpoints, for a message."""
    urls = [URLS[kind] for kind in kinds]
    return f"{', '.join(urls[:-1])} and {urls[-1]}" if len(urls) > 1 else urls[0]


def tasks_for(kind: Kind) -> str:
    """The tasks of which one is needed, for a message."""
    return " or ".join([f"'{task}'" for task, kinds in SERVED.items() if kind in kinds])
