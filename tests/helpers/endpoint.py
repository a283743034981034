"""The engine of an HTTP endpoint."""

from batchfile.engine.http import connection, dispatch, engine
from batchfile.engine.http.engine import UNFORESEEN, HttpEngine, HttpOptions
from batchfile.engine.http.wire import Failed, Said, Throttled, Unserved, api_root, read_answer, request_body
