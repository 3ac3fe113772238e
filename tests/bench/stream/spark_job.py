"""A query of Spark Structured Streaming from Kafka to Iceberg, as a program of its own environment.

``python spark_job.py JARS BOOTSTRAP TOPIC FOLDER VALUES FILTER``: carries the topic into table warm, into
warmonce without repeated ids, then likewise into main and once; prints one JSON line for these two: CPU and wall
seconds of the JVM from the start of the query to its end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession  # type: ignore[import-not-found,unused-ignore]

_A_BATCH = 150_000


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _carry(session: SparkSession, bootstrap: str, topic: str, folder: str, values: str, rules: str, table: str) -> None:
    read = (
        session.readStream.format("kafka")
        .option("kafka.bootstrap.servers", bootstrap)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("includeHeaders", "true")
        .option("maxOffsetsPerTrigger", _A_BATCH)
        .load()
        .selectExpr(
            f"from_json(CAST(value AS STRING), '{values}') AS event",
            "CAST(map_from_entries(headers)['event-id'] AS STRING) AS _event_id",
            "CAST(CAST(map_from_entries(headers)['event-time'] AS STRING) AS TIMESTAMP) AS _event_time",
            "timestamp AS _ingested_at",
            "topic AS _topic",
            "partition AS _partition",
            "offset AS _offset",
        )
        .selectExpr("event.*", "_event_id", "_event_time", "_ingested_at", "_topic", "_partition", "_offset")
        .where(f"{rules} AND _event_id IS NOT NULL AND _event_time IS NOT NULL")
    )
    if table.endswith("once"):
        read = read.withWatermark("_ingested_at", "24 hours").dropDuplicatesWithinWatermark(["_event_id"])
    (
        read.writeStream.format("iceberg")
        .outputMode("append")
        .option("fanout-enabled", "true")
        .option("checkpointLocation", f"{folder}/checkpoint-{table}")
        .trigger(availableNow=True)
        .toTable(f"lake.events.{table}")
        .awaitTermination()
    )


def main() -> None:
    jars, bootstrap, topic, folder, values, rules = sys.argv[1:]
    settings = {
        "spark.jars": ",".join(map(str, Path(jars).glob("*.jar"))),
        "spark.ui.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": f"{folder}/local",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.iceberg.check-nullability": "false",  # the filter leaves no NULL where the table has none
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "jdbc",
        "spark.sql.catalog.lake.uri": f"jdbc:sqlite:{folder}/catalog.db",
        "spark.sql.catalog.lake.jdbc.schema-version": "V1",
        "spark.sql.catalog.lake.warehouse": f"file://{folder}/warehouse",
    }
    builder = SparkSession.builder.master("local[1]").appName("bench")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    pid = session.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    _carry(session, bootstrap, topic, folder, values, rules, "warm")
    _carry(session, bootstrap, topic, folder, values, rules, "warmonce")
    for table in ("main", "once"):
        cpu, wall = _cpu_seconds(pid), time.perf_counter()
        _carry(session, bootstrap, topic, folder, values, rules, table)
        print(json.dumps({"cpu": _cpu_seconds(pid) - cpu, "wall": time.perf_counter() - wall}), flush=True)
    session.stop()


if __name__ == "__main__":
    main()
