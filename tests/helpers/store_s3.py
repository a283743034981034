"""The S3 store, which imports boto3."""

from batchfile.store import s3
from batchfile.store.s3 import S3Store
