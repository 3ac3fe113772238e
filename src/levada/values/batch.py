"""`batch`: Airflow, and the pods in which its DAGs train."""

from __future__ import annotations

from levada.values.block import Block, Lines, ObjectName
from levada.values.workload import Exposed, Image, Placed, Replicated, Workload


class AirflowApi(Replicated, Exposed):
    """User interface, REST API, and the API that running tasks talk to."""


class Airflow(Block):
    """Schedules and runs the DAG of each pipeline."""

    enabled: bool
    """Whether Airflow is rendered."""
    image: Image
    """The image of all of Airflow's processes."""
    existing_secret: ObjectName
    """A Secret with `fernet-key`, `api-secret-key`, `jwt-secret`, `admin-username` and `admin-password`; empty: made
    once."""
    config: dict[str, Lines]
    """More settings of airflow.cfg, {section: {key: value}}; a key the chart sets itself is replaced."""
    api: AirflowApi
    """User interface, REST API, and the API that running tasks talk to."""
    scheduler: Replicated
    """Decides what runs, and runs it; a training task only watches the pod it has started."""
    dag_processor: Workload
    """Reads the DAGs."""
    migrate: Workload
    """Brings the database's schema to this version of Airflow."""


class Batch(Block):
    """Airflow, and the pods in which its DAGs train."""

    enabled: bool
    """Whether the room is rendered."""
    airflow: Airflow
    """Schedules and runs the DAG of each pipeline."""
    trainer: Placed
    """The pods started by the DAGs."""
