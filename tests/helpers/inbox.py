"""What is above the ledger: inbox, stored files, janitor."""

from batchfile import janitor, long_work
from batchfile.files import keys as files_keys
from batchfile.files import stored_files, uploads
from batchfile.files.keys import file_key, files_prefix
from batchfile.files.stored_files import FileInput, FileRecord, file_input
from batchfile.files.stored_files import source as source_of_file
from batchfile.files.uploads import UploadRecord
from batchfile.inbox import documents, outbox, scan
from batchfile.inbox import keys as inbox_keys
from batchfile.inbox import records as inbox_records
from batchfile.inbox.documents import FileFacts
from batchfile.inbox.keys import CLAIMS_PREFIX, INBOX_PREFIX, OUTBOX_PREFIX, claim_key, outbox_key, outbox_task_key
from batchfile.inbox.records import ClaimRecord, DroppedFile, dropped_file, inbox_path
from batchfile.inbox.records import source as source_of_dropped
from batchfile.inbox.scan import CLAIM_KEPT_S, Inbox
from batchfile.janitor import DAMAGED_S, RELOOK_S, Janitor
from batchfile.long_work import LongWork, is_long
