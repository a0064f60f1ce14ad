"""Drift of a column of arrays as one thing: an image, an embedding, whatever stands together in a vector.

No place of a vector says much by itself, and sixty-four of them drift sixty-four times by chance. So a classifier is
asked to tell rows of today from rows of the reference (a classifier two-sample test: Lopez-Paz and Oquab, 2017;
Evidently's embedding drift by `model`), and its ROC AUC on rows that it did not learn from says how well it does. It is
a ridge regression on the numbers and their squares (a discriminant), so that it sees what moved and what spread.

The AUC is told as a population stability index, so that one limit serves all columns: that of two normal distributions
which are as easily told apart, `2 * z**2` where z is the normal quantile of the AUC. An index of 0.2 is an AUC of 0.62.
At most `SAMPLE` rows a side are looked at, drawn and cut into folds by a fixed seed.

Only ever imported at run time, hence numpy and polars at the top.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import polars as pl

SAMPLE = 2_000  # 64 numbers a row: 0.1 s
FOLDS = 3
SEED = 7
SUREST = 0.9999  # an AUC of 1 would be an infinite index

Numbers = npt.NDArray[np.float64]


def whole(column: pl.Series) -> pl.Series:
    """The arrays that are there and hold no null, NaN or infinity."""
    values = column.drop_nulls()
    items = values.list.eval(pl.element().is_finite().fill_null(False))
    return values.filter(items.list.all() & (values.list.len() > 0))


def array_index(past: pl.Series, now: pl.Series) -> float | None:
    """The index of two columns of whole arrays, all of one length; None where a side has too few to be cut in folds."""
    if min(len(past), len(now)) < FOLDS:
        return None
    found = max(told_apart(_drawn(past), _drawn(now)), 0.5)
    return 2 * NormalDist().inv_cdf(min(found, SUREST)) ** 2


def auc_of(index: float) -> float:
    """The ROC AUC that an index stands for."""
    return NormalDist().cdf(sqrt(index / 2))


def told_apart(past: Numbers, now: Numbers) -> float:
    """How well rows of `now` are told from those of `past` by models that did not see them: ROC AUC."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = np.concatenate([past, now])
    centred = rows - rows.mean(axis=0)
    features = np.concatenate([centred, centred**2], axis=1)
    side = np.repeat([0, 1], [len(past), len(now)])
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0, class_weight="balanced"))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    with threadpool_limits(1):  # matrices this small wait longer for other threads than they gain
        scores = cross_val_predict(model, features, side, cv=folds, method="decision_function")
    # each fold has a model of its own, whose scores are not those of another
    return float(np.mean([roc_auc_score(side[held], scores[held]) for _, held in folds.split(features, side)]))


def _drawn(arrays: pl.Series) -> Numbers:
    some = arrays if len(arrays) <= SAMPLE else arrays.sample(SAMPLE, seed=SEED)
    return np.array(some.to_list(), dtype=np.float64)
