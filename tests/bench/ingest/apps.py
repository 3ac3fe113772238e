"""Three servers for one question: the collector, the same without waiting for Kafka, and what one would write first."""

from __future__ import annotations

import os
import sys
import uuid
from typing import Any

from confluent_kafka import Producer
from pydantic import BaseModel

from levada.config import settings


class Event(BaseModel):
    """What the naive server takes."""

    n: int
    user: str
    a: float
    b: float
    c: str
    d: bool


def durable() -> None:
    """The collector as it is."""
    from levada.ingest.collector import run

    run(settings())


def forgetful() -> None:
    """The collector, which here answers as soon as the event is in the producer's queue."""
    from levada.ingest.producer import AckProducer, Headers, Receipt, Waiter

    def send_for(
        self: AckProducer, waiter: Waiter, topic: str, value: bytes, key: str | bytes, headers: Headers
    ) -> None:
        self._producer.produce(topic, value, key, headers=headers)
        waiter.set_result(Receipt(0, 0))

    AckProducer.send_for = send_for  # type: ignore[method-assign]
    durable()


def naive() -> None:
    """FastAPI with a pydantic model, and a flush for every request. It knows no key and counts nothing."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    kafka = settings().kafka
    assert kafka is not None
    producer = Producer({**kafka.client(), "acks": "all"})

    @app.post("/v1/bench/events", status_code=202)
    def post(event: Event) -> dict[str, Any]:
        event_id = str(uuid.uuid4())
        producer.produce("bench", event.model_dump_json(), event_id, headers={"event-id": event_id})
        producer.flush()
        return {"event_id": event_id}

    uvicorn.run(app, port=int(os.environ["LEVADA_COLLECTOR__PORT"]), access_log=False, log_level="warning")


if __name__ == "__main__":
    {"durable": durable, "forgetful": forgetful, "naive": naive}[sys.argv[1]]()
