"""The Airflow DAGs of all declared pipelines."""

from levada.batch.dags import build

globals().update(build())
