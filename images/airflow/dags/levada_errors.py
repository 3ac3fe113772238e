"""Has no DAGs: fails to import, for Airflow to show it, where a declared pipeline is wrong."""

from levada.batch.dags import check

check()
