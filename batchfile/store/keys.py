"""Which names can be keys. The same rule for every store, so that a batch can move from one to another."""

from batchfile.errors import StoreError

INTERNAL = ".store"  # the first segment that a store keeps for itself; never an object, never listed
OTHERS = "inbox"  # the first segment below which others write: in a directory no link is followed there
_SHOWN_CHARS = 200


def is_key(name: str) -> bool:
    """A relative path with forward slashes, valid Unicode, without empty, `.` or `..` segments."""
    segments = name.split("/")
    if "" in segments or "." in segments or ".." in segments or segments[0] == INTERNAL:
        return False
    return "\\" not in name and "\0" not in name and is_unicode(name)


def check_key(key: str) -> str:
    """The key itself. Raises: StoreError for a name that no object can have."""
    if not is_key(key):
        raise StoreError(
            f"{key[:_SHOWN_CHARS]!r} can not be a key: use a relative path with forward slashes, "
            f"without empty, '.' or '..' segments and not below {INTERNAL}"
        )
    return key


def is_of_others(key: str) -> bool:
    return key.startswith(f"{OTHERS}/")


def is_unicode(name: str) -> bool:
    """False for what the operating system could not decode (lone surrogates)."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
