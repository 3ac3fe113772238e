"""Flink SQL from Kafka into the sink's own table, on one core.

A session cluster of a job manager and a task manager with one slot, both counted; parallelism 1, object reuse, heap
state, no shuffle before the writer, a checkpoint and with it a commit every 10 s as the sink's. It parses values with
the declared schema, checks the same rules, keeps ids, times and places; `flink once` drops repeated ids of a day too.
Both drop what breaks a rule. `flink dead` keeps it, with its raw bytes, in a dead-letter topic beside that, as the sink
does; since SQL has a message either parsed or raw, it takes the raw one apart by JSON_VALUE. None checks bounds of the
event time. Rows and offsets belong to one checkpoint, so it is exactly-once from Kafka on.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from . import broker, peers
from .consumers import ENTRY
from .spark import columns, rules

COMMIT_SECONDS = 10
_SECONDS = 400.0
_OPENED = tuple(
    f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in ("lang", "util", "net", "nio", "time")
)
_RETURNED = {"BIGINT": "INTEGER"}
"""JSON_VALUE knows four types; its planner fails on another without saying why."""
_WAYS = {"main": "flink", "once": "flink once", "dead": "flink dead"}
_TABLES = ("warmmain", "warmonce", "warmdead", *_WAYS)
# Flink reads a stamp without T and Z, as one of the session's zone.
_TIME = "CAST(SUBSTRING(REPLACE(DECODE(headers['event-time'], 'UTF-8'), 'T', ' ') FROM 1 FOR 26) AS TIMESTAMP_LTZ(6))"


def _script(bootstrap: str, topic: str, folder: Path, table: str) -> str:
    once, dead = not table.endswith("main"), table.endswith("dead")
    first = "(SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY arrived) AS number FROM events)"
    server = f"'connector' = 'kafka', 'properties.bootstrap.servers' = '{bootstrap}'"

    def source(name: str, physical: str, format_: str) -> str:
        return (
            f"CREATE TEMPORARY TABLE {name} ({physical}, headers MAP<STRING, BYTES> METADATA VIRTUAL, "
            "`topic` STRING METADATA VIRTUAL, `partition` INT METADATA VIRTUAL, `offset` BIGINT METADATA VIRTUAL, "
            "event_id AS DECODE(headers['event-id'], 'UTF-8'), arrived AS PROCTIME()) WITH "
            f"({server}, 'topic' = '{topic}', 'scan.startup.mode' = 'earliest-offset', "
            f"'scan.bounded.mode' = 'latest-offset', 'properties.max.poll.records' = '10000', 'format' = {format_})"
        )

    keep = (
        f"INSERT INTO lake.events.{table} /*+ OPTIONS('distribution-mode' = 'none') */ "
        f"SELECT {', '.join(ENTRY['fields'])}, event_id, {_TIME}, CURRENT_TIMESTAMP, `topic`, `partition`, `offset` "
        f"FROM {first if once else 'events'} WHERE {'good' if dead else rules()}{' AND number = 1' if once else ''}"
    )
    lines = [
        f"CREATE CATALOG lake WITH ('type' = 'iceberg', 'catalog-impl' = 'org.apache.iceberg.jdbc.JdbcCatalog', "
        f"'uri' = 'jdbc:sqlite:{folder}/catalog.db', 'jdbc.schema-version' = 'V1', "
        f"'warehouse' = 'file://{folder}/warehouse')"
    ]
    if dead:
        taken = ", ".join(
            f"CAST(JSON_VALUE(text, '$.{name}' RETURNING {_RETURNED.get(type_, type_)}) AS {type_}) AS {name}"
            for name, type_ in (column.split() for column in columns().split(", "))
        )
        lines += [
            source("messages", "message BYTES", "'raw'"),
            "CREATE TEMPORARY TABLE letters (message BYTES, headers MAP<STRING, BYTES> METADATA) WITH "
            f"({server}, 'topic' = '{_dead_topic(folder)}', 'format' = 'raw')",
            f"CREATE TEMPORARY VIEW events AS SELECT *, COALESCE({rules()}, FALSE) AS good "
            f"FROM (SELECT *, {taken} FROM (SELECT *, DECODE(message, 'UTF-8') AS text FROM messages))",
            f"EXECUTE STATEMENT SET BEGIN\n{keep};\nINSERT INTO letters SELECT message, headers FROM events "
            "WHERE NOT good;\nEND",
        ]
    else:
        lines += [source("events", columns(), "'json', 'json.ignore-parse-errors' = 'true'"), keep]
    return "".join(f"{line};\n" for line in lines)


def _dead_topic(folder: Path) -> str:
    return f"{folder.name}.dead"


def measure(bootstrap: str, topic: str, events: int, folder: Path) -> dict[str, peers.Found]:
    """The whole topic by all queries to warm the JVMs up, then once more by each into a table of its own.

    Measured from the job's submission to its last row: its start is in it, the client that plans it is not.

    Raises:
        LeftOutError: there is no Flink here.
    """
    libraries = peers.jars(peers.POMS / "flink.xml")
    peers.make_tables(folder, *_TABLES, places=True)
    broker.create(bootstrap, _dead_topic(folder), 1)
    rpc, rest = broker.free_ports(2)
    settings = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": rpc,
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": rest,
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.host": "127.0.0.1",
        "taskmanager.cpu.cores": 1.0,
        # What Flink's own scripts work out from one number; the process asks for each.
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "taskmanager.memory.task.heap.size": "1g",
        "taskmanager.memory.task.off-heap.size": "128m",
        "taskmanager.memory.managed.size": "128m",
        "taskmanager.memory.network.min": "128m",
        "taskmanager.memory.network.max": "128m",
        "execution.target": "remote",
        "parallelism.default": 1,
        "pipeline.object-reuse": True,
        "execution.checkpointing.interval": f"{COMMIT_SECONDS} s",
        "execution.checkpointing.dir": f"file://{folder}/checkpoints",
        "classloader.resolve-order": "parent-first",
        "restart-strategy.type": "none",
        "table.exec.state.ttl": "24 h",
        "table.local-time-zone": "UTC",
        "io.tmp.dirs": str(folder),
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    java = ["java", *_OPENED, "-cp", f"{libraries}/*"]
    runtime = "org.apache.flink.runtime"
    manager = [*java, "-Xmx768m", f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", "-c", str(folder)]
    worker = [*java, "-Xmx1536m", f"{runtime}.taskexecutor.TaskManagerRunner", "-c", str(folder)]
    found: dict[str, peers.Found] = {}
    with peers.process(manager, folder, "manager") as jobs, peers.process(worker, folder, "log") as tasks:
        for table in _TABLES:
            cpu, wall = peers.cpu_seconds(jobs.pid) + peers.cpu_seconds(tasks.pid), time.perf_counter()
            _submit(java, libraries, folder, table, _script(bootstrap, topic, folder, table))
            tasks.wait(lambda table=table: peers.rows(folder, table) >= events, _SECONDS, f"all of {table}")  # type: ignore[misc]
            cpu = peers.cpu_seconds(jobs.pid) + peers.cpu_seconds(tasks.pid) - cpu
            found[table] = {"cpu": cpu, "wall": time.perf_counter() - wall}
    for table in _WAYS:
        assert peers.rows(folder, table) == peers.distinct(folder, table, "_event_id") == events
    return {way: found[table] for table, way in _WAYS.items()}


def _submit(java: list[str], libraries: Path, folder: Path, table: str, script: str) -> None:
    path = folder / f"{table}.sql"
    path.write_text(script)
    (driver,) = libraries.glob("flink-sql-gateway-*.jar")
    class_ = "org.apache.flink.table.runtime.application.SqlDriver"
    run = ["org.apache.flink.client.cli.CliFrontend", "run", "--class", class_, str(driver)]
    done = subprocess.run(
        ["taskset", "--cpu-list", str(peers.OTHER_CORE), *java, *run, "--scriptUri", f"file://{path}"],
        cwd=folder, env={**os.environ, "FLINK_CONF_DIR": str(folder)}, capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
