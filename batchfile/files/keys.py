"""The ids and keys of stored files and uploads.

files/{tenant}/     stored files, newest first: a document and the bytes of each
uploads/{tenant}/   files that are uploaded in parts
"""

import re

from batchfile.ledger.keys import newest_first

_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_UPLOAD_ID = re.compile(r"upload_[0-9a-f]{32}")
_PART_ID = re.compile(r"part_[0-9a-f]{32}")


def new_file_id(created_at: float, random: str) -> str:
    """`random`: 32 hex digits. Ids sort newest first."""
    return f"file-{newest_first(created_at):011x}{random[:21]}"


def is_file_id(name: str) -> bool:
    return _FILE_ID.fullmatch(name) is not None


def is_upload_id(name: str) -> bool:
    return _UPLOAD_ID.fullmatch(name) is not None


def is_part_id(name: str) -> bool:
    return _PART_ID.fullmatch(name) is not None


def files_prefix(tenant: str) -> str:
    return f"files/{tenant}/"


def file_prefix(tenant: str, file_id: str) -> str:
    """Of the document and the bytes of a file. All ids have one length, so none is a prefix of another."""
    return f"{files_prefix(tenant)}{file_id}"


def file_key(tenant: str, file_id: str) -> str:
    return f"{file_prefix(tenant, file_id)}.json"


def file_data_key(tenant: str, file_id: str, nonce: str) -> str:
    return f"{file_prefix(tenant, file_id)}.data-{nonce}"


def file_id_of(key: str) -> str | None:
    """The id of the file whose document is `key`; None for any other key."""
    name, _, kind = key.rsplit("/", 1)[1].partition(".")
    return name if kind == "json" else None


def upload_prefix(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}"


def upload_key(tenant: str, upload_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}/upload.json"


def upload_published_key(tenant: str, upload_id: str) -> str:
    """Says that the file's document was written: if the document is missing, it was deleted."""
    return f"{upload_prefix(tenant, upload_id)}/published"


def upload_part_key(tenant: str, upload_id: str, part_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}/{part_id}"
