"""The API."""

from api import create
from api.__main__ import main
from api.app import create_app
from api.create import Contract, create_batch
from api.http import connections
from api.http.auth import AuthMiddleware, Caller
from api.http.connections import Connections, ServerConnection
from api.http.errors import Refusal
from api.http.negotiation import ApiFormat, NegotiatedFormat, problem
from api.http.spool import Spooled, SpoolLimits, spool
from api.native import serializers
from api.native.serializers import stage_counts
from api.openai.output_files import OutputFiles
from api.ops import safe_post, schemas, store_health, webhooks
from api.ops.background import BackgroundTasks
from api.ops.metrics import Metrics
from api.ops.pool_totals import PoolTotals
from api.ops.pools import PoolStatus
from api.ops.safe_post import post
from api.ops.webhooks import (
    AT_ONCE,
    BACKOFF_S,
    Event,
    WebhookRecord,
    WebhookSender,
    _Due,
    _Receiver,
    deliver,
    event_of,
    signed_headers,
    webhook_key,
)
from api.service import FULL_S, Room, Service
from batchfile.safe_http import is_public
