"""The real service on loopback, as the service tests have it."""

from tests.service.conftest import api, make_request, raw, serve_api, start_api, watch

__all__ = ["api", "make_request", "raw", "serve_api", "start_api", "watch"]
