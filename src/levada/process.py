"""What every long-running process of Levada has: JSON logs, a health port and a clean stop.

The health port (8090) answers ``/livez``, ``/readyz`` and ``/metrics``. It is served by a thread of its own, so a
process that is busy still answers; whether it is *live* is for the process to say.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from levada.config import Settings


def configure_logging(level: str) -> None:
    """One JSON object a line on standard output, for our own logs and for the libraries' alike."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


class Health:
    """The health server; starts on construction, stops with :meth:`close`."""

    def __init__(
        self,
        port: int,
        *,
        ready: Callable[[], bool],
        live: Callable[[], bool] = lambda: True,
        host: str = "0.0.0.0",  # noqa: S104
    ) -> None:
        def answer(path: str) -> tuple[HTTPStatus, str, bytes]:
            if path == "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest()
            probe = {"/livez": live, "/readyz": ready}.get(path)
            if probe is None:
                return HTTPStatus.NOT_FOUND, "text/plain", b"/livez, /readyz and /metrics are here\n"
            good = probe()
            body = json.dumps({"ok": good}).encode()
            return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content_type, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds; they are not worth a line."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on; of use when it was asked for port 0."""
        return self._server.server_address[1]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def run(
    main: Callable[[threading.Event], None],
    settings: Settings,
    *,
    ready: Callable[[], bool],
    live: Callable[[], bool] = lambda: True,
) -> None:
    """Run ``main`` with logs and a health port until it returns.

    ``main`` gets an event that SIGTERM or SIGINT sets; it then finishes what it has begun and returns.
    """
    configure_logging(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    health = Health(settings.health_port, ready=ready, live=live)
    try:
        main(stop)
    finally:
        health.close()
