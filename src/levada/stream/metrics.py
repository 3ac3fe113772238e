"""What a sink tells Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 43200, 172800)

ROWS = Counter("levada_sink_rows", "Events committed to the lake.", ["pipeline"])
COMMITS = Counter("levada_sink_commits", "Commits to the lake.", ["pipeline"])
COMMIT_SECONDS = Histogram("levada_sink_commit_seconds", "Time a commit takes.", ["pipeline"])
TABLE_ROWS = Gauge("levada_lake_rows", "Rows in the table.", ["pipeline"])
COMMITTED = Gauge(
    "levada_sink_committed_offset", "Next offset to read, as the table has it.", ["pipeline", "partition"]
)
DEAD_LETTERS = Counter("levada_sink_dead_letters", "Events sent to the dead-letter topic.", ["pipeline", "rule"])
DUPLICATES = Counter("levada_sink_duplicates", "Events dropped because their id was seen before.", ["pipeline"])
LATE = Counter(
    "levada_sink_late_events",
    "Events further back than lake.lateHorizon; they are dead letters.",
    ["pipeline"],
)
WINDOW_IDS = Gauge("levada_sink_window_ids", "Event ids that the dedupe window knows.", ["pipeline"])
WINDOW_SHORTENED = Gauge(
    "levada_sink_window_shortened", "1 once the dedupe window forgot ids early to stay in its memory.", ["pipeline"]
)
WINDOW_REACH = Gauge(
    "levada_sink_window_reach_seconds", "How far back the dedupe window knows every event id.", ["pipeline"]
)
WINDOW_FILL_SECONDS = Gauge("levada_sink_window_fill_seconds", "Time that filling the window took.", ["pipeline"])
CONFLICTS = Counter("levada_sink_commit_conflicts", "Commits repeated because another came first.", ["pipeline"])
FENCED = Counter("levada_sink_fenced", "Times that another sink took a partition of this one.", ["pipeline"])
TABLE_FILES = Gauge("levada_lake_files", "Data files of the table.", ["pipeline"])
SNAPSHOTS = Gauge("levada_lake_snapshots", "Snapshots of the table.", ["pipeline"])
TOPIC_REPLACED = Counter(
    "levada_sink_topic_replaced", "Times that the topic was found to be another one.", ["pipeline", "policy"]
)
LAG = Gauge("levada_sink_lag", "Events in Kafka that are not in the lake yet.", ["pipeline", "partition"])
FRESHNESS = Histogram(
    "levada_sink_freshness_seconds",
    "From the time of the oldest event of a commit to its commit.",
    ["pipeline"],
    buckets=_SECONDS,
)
NEWEST_EVENT = Gauge("levada_sink_newest_event_timestamp_seconds", "Time of the newest event committed.", ["pipeline"])
SKIPPED = Counter(
    "levada_sink_skipped_offsets", "Offsets that Kafka had deleted before the sink read them.", ["pipeline"]
)
FAILURES = Counter("levada_sink_failures", "Times that the sink started over.", ["pipeline", "error"])
NEEDS_OPERATOR = Gauge(
    "levada_sink_needs_operator", "1 while the sink stands still until somebody decides.", ["pipeline", "state"]
)
