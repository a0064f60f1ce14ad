"""A service as BentoML's documentation writes it: a class, a model, an API of arrays. The access log is off."""

import os

import bentoml
import numpy as np
import xgboost as xgb


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Default:
    """One model."""

    def __init__(self) -> None:
        self.model = xgb.Booster({"nthread": 1}, model_file=os.environ["MODEL"])

    @bentoml.api
    def predict(self, data: np.ndarray) -> np.ndarray:
        return self.model.inplace_predict(data)
