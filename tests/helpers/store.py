"""Stores."""

from batchfile import open_ledger
from batchfile.clock import Clock, SystemClock
from batchfile.open_ledger import STORE_FOLDER, existing_ledger, open_service_ledger
from batchfile.open_ledger import open_ledger as open_ledger_open_ledger
from batchfile.store import conformance, files, locks, s3_requests, s3_streams
from batchfile.store.base import Entry, Object, Store, Unchanged, WrappedStore, Writer
from batchfile.store.conformance import PREFIX, prove_conditions
from batchfile.store.directory import LEFTOVER_AGE_S, DirectoryStore
from batchfile.store.locks import FORGET_AFTER_S
from batchfile.store.metered import MeteredStore
from batchfile.store.open import prove_store
from batchfile.store.s3_streams import PART_BYTES
