"""How the page is served: one process with threads, and its metrics on a port of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

bind = f"0.0.0.0:{os.environ.get('ORDERS_PORT', '8080')}"
chdir = str(Path(__file__).parent)
wsgi_app = "orderpage:create_app()"
worker_class = "gthread"
threads = 16
worker_tmp_dir = "/dev/shm"  # noqa: S108
"""A heartbeat that waits for no disk."""
control_socket_disable = True
graceful_timeout = 20
"""Seconds in which orders that are under way are finished after SIGTERM."""
limit_request_line = 2048
limit_request_fields = 50


def post_worker_init(_: Any) -> None:
    """Serve the metrics."""
    start_http_server(int(os.environ.get("ORDERS_METRICS_PORT", "8090")))
