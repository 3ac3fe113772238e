"""Sinks that share one topic and one table, each a process of its own.

``python -m tests.bench.stream.sharing BOOTSTRAP TOPIC FOLDER INDEX REPLICAS``: claims its partitions, says ``ready``,
waits for a line, carries what is in them, and prints one JSON line: its events, CPU and wall seconds from that line to
its last row committed, and how many of its commits met a sibling's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow as pa

from levada.config import KafkaSettings, Settings, SinkSettings
from levada.pipeline import parse_pipeline
from levada.stream import metrics
from levada.stream.sink import Session

from .consumers import ENTRY
from .peers import catalog


def main() -> None:
    bootstrap, topic, folder, index, replicas = sys.argv[1:]
    pa.set_memory_pool(pa.jemalloc_memory_pool())
    pipeline = parse_pipeline({**ENTRY, "stream": {**ENTRY["stream"], "replicas": int(replicas)}}, topic)
    kafka = KafkaSettings(bootstrap=bootstrap, protocol="PLAINTEXT")
    settings = Settings(kafka=kafka, pipeline=topic, sink=SinkSettings(index=int(index)))
    with Session(settings, pipeline, catalog(Path(folder))) as session:
        session.start()
        wanted = sum(session._ends.values())
        print("ready", flush=True)
        sys.stdin.readline()
        cpu, wall = time.process_time(), time.perf_counter()
        while sum((session._reached | session._buffer.reached).values()) < wanted:
            session.step()
        session.commit()
        found = {"events": wanted, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    found["conflicts"] = metrics.CONFLICTS.labels(topic)._value.get()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
