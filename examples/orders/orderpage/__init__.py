"""An order page: the example application in front of pipeline `orders`.

An order counts once the collector has answered 202. Until then the page says so and sends the same order again, with
the same idempotency key, as often as the user likes: it is one order.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from http import HTTPStatus
from pathlib import Path

from flask import Flask, Response, redirect, render_template, request, session, url_for
from prometheus_client import Counter
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from orderpage.collector import Collector, Outcome, Refused
from orderpage.form import PRODUCTS, OrderForm

MAX_BODY_BYTES = 16 * 1024
"""No order is larger; a larger request is answered 413 before it is read."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "Referrer-Policy": "same-origin",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

ORDERS = Counter("levada_order_page_orders", "Orders that were sent, by what became of them.", ["outcome"])
for _outcome in Outcome:
    ORDERS.labels(_outcome.value)

log = logging.getLogger(__name__)


class _JsonLines(logging.Formatter):
    """One JSON object a line, as everything else in the line logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        line |= getattr(record, "order", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def create_app() -> Flask:
    """The application, with its settings from the environment.

    ``ORDERS_COLLECTOR_URL`` is the collector's address; ``ORDERS_API_KEY_FILE`` and ``ORDERS_SESSION_KEY_FILE`` name
    mounted files. The API key is read for every order, so that it can be rotated without a restart.

    Raises:
        RuntimeError: a setting is missing, or the session key is shorter than 32 characters.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=_session_key(Path(_setting("ORDERS_SESSION_KEY_FILE"))),
        # The prefix makes browsers insist on Secure, on the path / and on this very host.
        SESSION_COOKIE_NAME="__Host-orders",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        MAX_FORM_PARTS=20,
    )
    collector = Collector(_setting("ORDERS_COLLECTOR_URL"), Path(_setting("ORDERS_API_KEY_FILE")))

    @app.get("/")
    def show() -> str:
        return _page(OrderForm(formdata=None, order_key=str(uuid.uuid4())))

    @app.post("/")
    def order() -> AnyResponse | tuple[str, int] | tuple[str, int, dict[str, str]]:
        form = OrderForm()
        if not form.validate():
            return _page(form), HTTPStatus.UNPROCESSABLE_ENTITY
        order_id = form.event_id()
        answer = collector.send(form.event(), order_id)
        ORDERS.labels(answer.outcome.value).inc()
        log.info(answer.outcome.value, extra={"order": {"order_id": order_id, "status": answer.status}})
        if answer.outcome is Outcome.PLACED:
            session["placed"] = {"order_id": order_id, "product": form.product.data}
            return redirect(url_for("placed"), HTTPStatus.SEE_OTHER)
        if isinstance(answer, Refused):
            form.refuse(answer.errors)
            return _page(form), HTTPStatus.UNPROCESSABLE_ENTITY
        page = render_template("retry.html", form=form, order_id=order_id, products=PRODUCTS)
        return page, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}

    @app.get("/placed")
    def placed() -> AnyResponse | str:
        if "placed" not in session:
            return redirect(url_for("show"), HTTPStatus.SEE_OTHER)
        return render_template("placed.html", **session["placed"], products=PRODUCTS)

    @app.get("/livez")
    @app.get("/readyz")
    def alive() -> dict[str, bool]:
        # The collector being away is no reason to take the page away: it says what to do.
        return {"ok": True}

    app.after_request(_harden)
    app.register_error_handler(HTTPException, _say_error)
    return app


def _page(form: OrderForm) -> str:
    return render_template("order.html", form=form, products=PRODUCTS)


def _harden(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers[name] = value
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response


def _say_error(error: HTTPException) -> AnyResponse:
    response = error.get_response()
    response.set_data(render_template("error.html", code=error.code, name=error.name))
    response.content_type = "text/html; charset=utf-8"
    return Response(response.get_data(), error.code, list(response.headers))


def _setting(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise RuntimeError(f"{name} is not set, the order page needs it")
    return value


def _session_key(path: Path) -> str:
    key = path.read_text().strip()
    if len(key) < 32:
        raise RuntimeError(f"{path}: a session key has at least 32 characters")
    return key
