"""Answers Prometheus on the api-server."""

from levada.batch.metrics import LevadaMetrics as LevadaMetrics
