"""The endpoints that are served, and which kinds of requests a model serves, by the task that it is loaded for."""

from collections.abc import Iterable

from batchfile.types import Kind, Task

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/score": "score",
    "/v1/rerank": "rerank",
    "/v1/classify": "classification",
    "/v1/pooling": "pooling",
}
URLS: dict[Kind, str] = {kind: url for url, kind in reversed(KINDS.items())}  # the first of each kind
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
