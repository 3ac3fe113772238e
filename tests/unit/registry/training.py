"""The command ``levada`` in a process that stops before it registers a version, and can be killed there.

usage: python -m tests.unit.registry.training MOMENT ARGUMENT…

It prints "ready" and waits for a line; then it is killed at the moment: ``before`` the request, ``during`` it,
``after`` it, or ``never``. The arguments are those of ``levada``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import pyarrow as pa

from levada.pipeline import Pipeline
from levada.registry.contract import Context

_SENT = 0.01
"""Seconds after which a request is on its way."""


def weak(rows: pa.Table, pipeline: Pipeline, _: Context) -> Any:
    """A trainer whose model learns badly."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    columns = ColumnTransformer([("all", "passthrough", list(pipeline.features))])
    frame = rows.to_pandas()
    return make_pipeline(columns, LogisticRegression(C=1e-4)).fit(frame, frame["species"])


def _hold(moment: str) -> None:
    from mlflow import MlflowClient

    register = MlflowClient.create_model_version

    def held(*given: Any, **options: Any) -> Any:
        print("ready", flush=True)
        sys.stdin.readline()
        if moment == "during":
            threading.Timer(_SENT, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = register(*given, **options)
        if moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    MlflowClient.create_model_version = held


if __name__ == "__main__":
    from levada.cli.main import main

    _hold(sys.argv.pop(1))
    main()
