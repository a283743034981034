"""Line separators inside of JSON strings: legal there, and taken for the end of a line by some readers of lines.

U+2028, U+2029 and U+0085 end a line for Python's `splitlines`, for OpenAI's client and for Node's newer `readline`.
"""

_ESCAPES = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)


def escape_separators(data: bytes) -> bytes:
    """JSON of the same meaning without raw separators. In valid JSON they can only be in strings."""
    if not data.isascii():
        for raw, escape in _ESCAPES:
            data = data.replace(raw, escape)  # the same object where there is none
    return data
