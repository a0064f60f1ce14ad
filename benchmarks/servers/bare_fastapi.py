"""FastAPI and XGBoost as people write it: a pydantic model of the inputs, an async route, the booster.

`async def` and `inplace_predict` are the quick way to write it; a plain `def` would pay a thread's hop, a DMatrix more.
"""

import os

import numpy as np
import xgboost as xgb
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
booster = xgb.Booster({"nthread": 1}, model_file=os.environ["MODEL"])


class Row(BaseModel):
    """The ten inputs."""

    f0: float
    f1: float
    f2: float
    f3: float
    f4: float
    f5: float
    f6: float
    f7: float
    f8: float
    f9: float


class Answer(BaseModel):
    """The probability."""

    prediction: float


@app.post("/predict")
async def predict(row: Row) -> Answer:
    values = [row.f0, row.f1, row.f2, row.f3, row.f4, row.f5, row.f6, row.f7, row.f8, row.f9]
    return Answer(prediction=float(booster.inplace_predict(np.array([values], dtype=np.float32))[0]))
