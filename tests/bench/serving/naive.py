"""What one would write first: FastAPI that loads the model for each request, from the file that BENCH_MODEL names."""

from __future__ import annotations

import os
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Asked(BaseModel):
    """Rows."""

    inputs: list[list[float]]


@app.post("/predict")
def predict(asked: Asked) -> dict[str, Any]:
    """Labels."""
    model = joblib.load(os.environ["BENCH_MODEL"])
    return {"predictions": model.predict(pd.DataFrame(asked.inputs).to_numpy()).tolist()}
