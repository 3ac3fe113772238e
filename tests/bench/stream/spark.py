"""Spark Structured Streaming from Kafka into the sink's own table, on one core.

One JVM, ``local[1]``, Iceberg's own streaming sink with its fan-out writer, 150,000 offsets a batch as the sink's
fullest commit, the trigger that works a backlog off without waiting. It parses values with the declared schema,
checks the same rules, keeps ids, times and places; `spark once` drops repeated ids of a day too. It drops what breaks a
rule instead of keeping it as a dead letter and checks no bounds of the event time. Each batch is one commit that names
its number, so it is exactly-once from Kafka on.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from . import peers
from .consumers import ENTRY

PYSPARK = "pyspark==4.1.3"
_SECONDS = 400.0
_TYPES = {"string": "STRING", "double": "DOUBLE", "long": "BIGINT", "boolean": "BOOLEAN"}


def columns() -> str:
    """The declared fields, in the types of Spark and Flink."""
    return ", ".join(f"{name} {_TYPES[field['type']]}" for name, field in ENTRY["fields"].items())


def rules() -> str:
    """The declared rules, as one filter that Spark and Flink read alike."""
    asked = []
    for name, field in ENTRY["fields"].items():
        if field.get("required", True):
            asked.append(f"{name} IS NOT NULL")
        if "rule" in field:
            asked.append(f"({field['rule']})")
        if "oneOf" in field:
            asked.append(f"{name} IN ({', '.join(repr(each) for each in field['oneOf'])})")
    return " AND ".join(asked)


def measure(bootstrap: str, topic: str, events: int, folder: Path) -> dict[str, peers.Found]:
    """The whole topic by both queries to warm the JVM up, then once more by each into a table of its own.

    Raises:
        LeftOutError: there is no Spark here.
    """
    libraries = peers.jars(peers.POMS / "spark.xml")
    python = peers.python("spark", [PYSPARK])
    peers.make_tables(folder, "warm", "warmonce", "main", "once", places=True)
    job = str(Path(__file__).with_name("spark_job.py"))
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [*peers.PINNED, python, job, str(libraries), bootstrap, topic, str(folder), columns(), rules()],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log").read_text()[-3000:]
    for table in ("main", "once"):
        assert peers.rows(folder, table) == peers.distinct(folder, table, "_event_id") == events
    main, once = map(json.loads, done.stdout.strip().splitlines()[-2:])
    return {"spark": main, "spark once": once}
