"""A release in memory: a bundle directory read, checked against its golden rows, and warm.

A release that cannot answer its own golden rows as it did when it was trained is never returned from
`Release.load`, so whoever holds one may answer with it. Only used by processes that serve or check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.fields import CONFIDENCE, CONFIDENT, Field
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.plan import FeaturePlan
from mlops_assets.serving.postprocess import Postprocess
from mlops_assets.serving.wire.form import Form
from resources.artifacts.manifest import verified

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GOLDEN_TOLERANCE = 1e-5
WARM_UP_CALLS = 5  # the first calls of a tree library build its caches and thread pools
QUICK_SECONDS = 0.002


class BrokenBundleError(ValueError):
    """A bundle lacks a part, or a part of it cannot be read."""

    @classmethod
    def of(cls, bundle: Path, part: str, problem: object) -> Self:
        return cls(f"Bundle {bundle}: {part} cannot be used ({problem}). Train the model again to write a whole one.")


class GoldenMismatchError(RuntimeError):
    """A release does not answer its golden rows as it did when it was trained."""

    @classmethod
    def of(cls, model: str, difference: float) -> Self:
        return cls(
            f"{model!r} answers its golden rows with a difference of {difference:g} (allowed: {GOLDEN_TOLERANCE:g}). "
            "The model file, the schema or a library differs from training; build the Bento again from its run."
        )


@dataclass(frozen=True)
class Golden:
    """Rows of the holdout, values in input order, with the predictions made when the model was trained."""

    rows: list[list[Any]]
    predictions: list[float]


@dataclass(frozen=True)
class Release:
    """A model that may answer."""

    manifest: dict[str, Any]
    plan: FeaturePlan
    schema: InputSchema
    golden: Golden
    predictor: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    postprocess: Postprocess | None = None

    @classmethod
    def load(cls, bundle: Path, model: str | None = None) -> Self:
        """Read a bundle, which must be of `model`, check its files and its golden rows and warm it.

        Raises DamagedArtifactError, BrokenBundleError, GoldenMismatchError, and what the model's library does.
        """
        from mlops_assets.trainers import load_predictor

        verified(bundle)
        manifest = _part(bundle, "manifest.json", dict)
        release = cls(
            manifest=manifest,
            plan=plan_of(bundle),
            schema=_part(bundle, "schema.json", InputSchema.from_json),
            golden=_part(bundle, "golden.json", lambda golden: Golden(**golden)),
            predictor=load_predictor(manifest["framework"], bundle / "model"),
            postprocess=Postprocess.load(bundle),
        )
        if model not in (None, release.model):
            raise BrokenBundleError.of(bundle, "plan.json", f"it is of {release.model!r}, not {model!r}")
        release._check(bundle)
        return release

    @cached_property
    def form(self) -> Form:
        """What it asks of a caller."""
        return Form.of(self.plan, self.schema)

    @cached_property
    def quick(self) -> bool:
        """Does it predict a row in a time that an event loop may spare? Measured once, on its first golden row."""
        return min(self._row_seconds() for _ in range(WARM_UP_CALLS)) < QUICK_SECONDS

    def _row_seconds(self) -> float:
        began = perf_counter()
        self.predict(self.golden.rows[:1])
        return perf_counter() - began

    @property
    def model(self) -> str:
        return self.plan.model

    @cached_property
    def outputs(self) -> dict[str, Field]:
        """What it says beside its prediction, by name."""
        made = self.postprocess.fields if self.postprocess else {}
        return {CONFIDENCE: CONFIDENT, **made} if self._chooses else made

    @cached_property
    def _chooses(self) -> bool:
        from mlops_assets.trainers import Classes

        return isinstance(self.predictor, Classes)

    def judged(self, matrix: NDArray[np.float32]) -> tuple[list[float], dict[str, list[float]]]:
        """A prediction a row and, of a class that was chosen among several, how likely it is held to be."""
        if not self._chooses:
            return self.predictor(matrix).tolist(), {}
        shares = self.predictor.shares(matrix)  # type: ignore[attr-defined]
        return shares.argmax(axis=1).astype(float).tolist(), {CONFIDENCE: shares.max(axis=1).tolist()}

    def predict(self, rows: Sequence[Sequence[Any]]) -> list[float]:
        """One prediction per row of input values (in the order of `plan.inputs`)."""
        predictions: list[float] = self.predictor(self.schema.encode(rows)).tolist()
        return predictions

    def golden_difference(self) -> float:
        """The largest difference between a golden prediction and the answer now; NaN counts as infinite."""
        pairs = zip(self.predict(self.golden.rows), self.golden.predictions, strict=True)
        return max(float("inf") if isnan(now) else abs(now - then) for now, then in pairs)

    def _check(self, bundle: Path) -> None:
        if self.plan.inputs != tuple(column.name for column in self.schema.columns):
            raise BrokenBundleError.of(bundle, "schema.json", "its columns are not the inputs of plan.json, in order")
        if not self.golden.rows or len(self.golden.rows) != len(self.golden.predictions):
            raise BrokenBundleError.of(bundle, "golden.json", "it needs rows, and a prediction for each")
        if (difference := self.golden_difference()) > GOLDEN_TOLERANCE:
            raise GoldenMismatchError.of(self.model, difference)
        if self.postprocess is not None:
            self.postprocess.check(bundle)
        _ = self.quick


def plan_of(bundle: Path) -> FeaturePlan:
    """The plan that a bundle runs with. Raises BrokenBundleError."""
    plan: FeaturePlan = _part(bundle, "plan.json", FeaturePlan.from_json)
    return plan


def _part(bundle: Path, name: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(json.loads((bundle / name).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenBundleError.of(bundle, name, f"{type(error).__name__}: {error}") from error
