"""Flink SQL from Kafka into the sink's own table, on one core.

One JVM with Flink's local cluster, parallelism 1, object reuse, heap state, no shuffle before the writer, a checkpoint
and with it a commit every 10 s as the sink's. It parses values with the declared schema, checks the same rules, keeps
ids, times and places. It drops what breaks a rule instead of keeping it as a dead letter, checks no bounds of the event
time and drops no repeated id. Rows and offsets belong to one checkpoint, so it is exactly-once from Kafka on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from . import peers
from .consumers import ENTRY
from .spark import columns, rules

COMMIT_SECONDS = 10
_SECONDS = 400.0
# Flink reads a stamp without T and Z, as one of the session's zone.
_TIME = "CAST(SUBSTRING(REPLACE(DECODE(headers['event-time'], 'UTF-8'), 'T', ' ') FROM 1 FOR 26) AS TIMESTAMP_LTZ(6))"


def _script(bootstrap: str, topic: str, folder: Path) -> str:
    lines = [
        f"CREATE CATALOG lake WITH ('type' = 'iceberg', 'catalog-impl' = 'org.apache.iceberg.jdbc.JdbcCatalog', "
        f"'uri' = 'jdbc:sqlite:{folder}/catalog.db', 'jdbc.schema-version' = 'V1', "
        f"'warehouse' = 'file://{folder}/warehouse', 'cache-enabled' = 'false')",
        f"CREATE TEMPORARY TABLE events ({columns()}, headers MAP<STRING, BYTES> METADATA VIRTUAL, "
        "`topic` STRING METADATA VIRTUAL, `partition` INT METADATA VIRTUAL, `offset` BIGINT METADATA VIRTUAL) WITH "
        f"('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}', "
        "'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset', 'format' = 'json', "
        "'json.ignore-parse-errors' = 'true', 'properties.max.poll.records' = '10000')",
    ]
    for table in ("warm", "main"):
        lines.append(
            f"INSERT INTO lake.events.{table} /*+ OPTIONS('distribution-mode' = 'none') */ "
            f"SELECT {', '.join(ENTRY['fields'])}, DECODE(headers['event-id'], 'UTF-8'), {_TIME}, CURRENT_TIMESTAMP, "
            f"`topic`, `partition`, `offset` FROM events WHERE {rules()}"
        )
    return "".join(f"{line};\n" for line in lines)


def measure(bootstrap: str, topic: str, events: int, folder: Path) -> dict[str, float]:
    """The whole topic once to warm the JVM up, then once more into another table by a job of its own.

    Measured from the warm-up's last commit to the last row: the job's planning and start are in it.

    Raises:
        LeftOutError: there is no Flink here.
    """
    libraries = peers.jars(peers.POMS / "flink.xml")
    peers.make_tables(folder, "warm", "main", places=True)
    (folder / "events.sql").write_text(_script(bootstrap, topic, folder))
    settings = {
        "execution.target": "local",
        "parallelism.default": 1,
        "pipeline.object-reuse": True,
        "execution.checkpointing.interval": f"{COMMIT_SECONDS} s",
        "classloader.resolve-order": "parent-first",
        "restart-strategy.type": "none",
        "table.dml-sync": True,
        "table.local-time-zone": "UTC",
        "io.tmp.dirs": str(folder),
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    opened = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in ("lang", "util", "net", "nio", "time")]
    (driver,) = libraries.glob("flink-sql-gateway-*.jar")
    main = ["java", "-Xmx2g", *opened, "-cp", f"{libraries}/*", "org.apache.flink.client.cli.CliFrontend", "run",
            "--class", "org.apache.flink.table.runtime.application.SqlDriver", str(driver),
            "--scriptUri", f"file://{folder}/events.sql"]  # fmt: skip
    with peers.process(main, folder, {"FLINK_CONF_DIR": str(folder)}) as flink:
        flink.wait(lambda: peers.rows(folder, "warm") >= events, _SECONDS, "all rows of the warm-up")
        cpu, wall = peers.cpu_seconds(flink.pid), time.perf_counter()
        flink.wait(lambda: peers.rows(folder, "main") >= events, _SECONDS, "all rows")
        cpu, wall = peers.cpu_seconds(flink.pid) - cpu, time.perf_counter() - wall
    assert peers.rows(folder, "main") == peers.distinct(folder, "main", "_event_id") == events
    return {"events": events, "cpu": cpu, "wall": wall}
