"""Clients of services and stores."""

from batchfile.client.estimate import Estimate, LocalTime, Sample, local_time
from batchfile.client.store import StoreRemote
from batchfile.client.upload import open_upload
