"""Small JSON documents that a route reads as a whole: rejects what its parser would drop in silence."""

from batchfile.lines.diagnostics import place
from batchfile.lines.file_formats import HEAD_BYTES, detect
from batchfile.lines.json_scan import find_any_repeats

from .errors import Refusal


def check_document(body: bytes) -> None:
    """Raises: Refusal 400 where an object in it has a key twice, at any depth; InvalidFile where it is not text."""
    detect("the body", body[:HEAD_BYTES])
    for path in find_any_repeats(body):
        where = place(path)
        raise Refusal(400, f"{where}: is given twice; keep one of them", param=where)
