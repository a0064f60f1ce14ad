"""Post-processing: what a prediction means to who asked, the last named stage of an answer.

Declared as Polars expressions over `prediction` and the model's inputs, and carried by a bundle as data:

    postprocess.json    {"inputs": {name: type}, "outputs": {name: {type, meaning, "expression", "folded"}},
                         "golden": {name: [a value for each row of golden.json]}}

`expression` is Polars' own form, in base64. Where it is simple, `folded` is the same for a few rows without Polars
(`mlops_assets.serving.folding`). The rules are those of a transform: each row by itself, and no Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.fields import Field, TypeName
from mlops_assets.serving.folding import PREDICTION, Cell, Folded, cell, fold
from mlops_assets.serving.transform import deserialised, form_of, serialised, series_of

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ModelPipeline
    from mlops_assets.serving.answers import Inputs

FILE = "postprocess.json"
FEW_ROWS = 256  # beyond it Polars is quicker than row by row
TOLERANCE = 1e-9


class PostprocessError(ValueError):
    """Post-processing does not say of the golden rows what it said when the model was trained."""

    @classmethod
    def of(cls, output: str, said: object, then: object) -> Self:
        return cls(
            f"output {output!r} of a golden row is {said!r} and was {then!r}; "
            "the file or the version of Polars differs from training"
        )


@dataclass(frozen=True)
class Output:
    """One column of the answer: its type and meaning, and how it is made."""

    dtype: TypeName
    expression: str
    folded: Folded | None = None
    description: str = ""
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, expression: pl.Expr, meaning: Field, inputs: Mapping[str, Field]) -> Self:
        told = (meaning.description, meaning.unit, meaning.minimum, meaning.maximum)
        return cls(meaning.dtype, serialised(expression), fold(expression, inputs), *told)

    @property
    def field(self) -> Field:
        return Field(self.dtype, self.description, self.unit, self.minimum, self.maximum)


@dataclass(frozen=True)
class Postprocess:
    """The outputs that a release adds to its predictions, in order; `inputs` are the columns they read, by type."""

    inputs: Mapping[str, TypeName]
    made: Mapping[str, Output]
    golden: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: ModelPipeline) -> Self | None:
        """That of a declared model; None where it declares none."""
        if pipeline.postprocess is None:
            return None
        fields = pipeline.postprocess.reads(pipeline)
        expressions, schema = pipeline.postprocess.expressions(), pipeline.postprocess.schema
        return cls(
            {name: field.dtype for name, field in fields.items()},
            {name: Output.of(expressions[name], meaning, fields) for name, meaning in schema.items()},
        )

    @classmethod
    def load(cls, bundle: Path) -> Self | None:
        """That of a bundle; None where it has none. Raises BrokenBundleError."""
        if not (bundle / FILE).exists():
            return None
        with _of_bundle(bundle):
            found = cls.from_json(json.loads((bundle / FILE).read_bytes()))
            for name, output in found.made.items():
                form_of(name, output.expression)
            return found

    def check(self, bundle: Path) -> None:
        """Raise BrokenBundleError unless it says of the bundle's golden rows what it said in training."""
        with _of_bundle(bundle):
            golden, plan = (json.loads((bundle / name).read_bytes()) for name in ("golden.json", "plan.json"))
            for name, values in self.outputs(golden["rows"], plan["inputs"], golden["predictions"]).items():
                for said, then in zip(values, self.golden[name], strict=True):
                    if not _alike(said, then):
                        raise PostprocessError.of(name, said, then)

    def write(self, bundle: Path, names: Sequence[str]) -> None:
        """Into a bundle that has its golden rows, whose inputs are `names` in order; with what it says of them."""
        rows = json.loads((bundle / "golden.json").read_bytes())
        golden = self.outputs(rows["rows"], names, rows["predictions"])
        document = {**self.to_json(), "golden": golden}
        (bundle / FILE).write_text(json.dumps(document, indent=2, allow_nan=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": dict(self.inputs),
            "outputs": {name: asdict(output) for name, output in self.made.items()},
            "golden": dict(self.golden),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` gave; KeyError or TypeError when something is missing or unknown."""
        outputs = {name: Output(**output) for name, output in document["outputs"].items()}
        return cls(dict(document["inputs"]), outputs, document["golden"])

    @property
    def fields(self) -> dict[str, Field]:
        """The outputs by name: type, meaning, unit, bounds."""
        return {name: output.field for name, output in self.made.items()}

    def outputs(
        self, inputs: Sequence[Sequence[Any]], names: Sequence[str], predictions: Sequence[float]
    ) -> dict[str, list[Any]]:
        """Each output's values for rows of inputs, which hold `names` in order, and their predictions."""
        cells = self._cells(names) if len(predictions) <= FEW_ROWS else None
        if cells is not None:
            return {
                name: [make(row, said) for row, said in zip(inputs, predictions, strict=True)]
                for name, make in cells.items()
            }
        places = {name: place for place, name in enumerate(names)}
        columns = [
            series_of(name, [row[places[name]] for row in inputs], kind, strict=False)
            for name, kind in self._types.items()
            if name != PREDICTION
        ]
        return self._select(columns, predictions)

    def outputs_of(self, inputs: Inputs, names: Sequence[str], predictions: Sequence[float]) -> dict[str, list[Any]]:
        """The same for inputs of any kind, of which no more is read than the outputs need."""
        frame = getattr(inputs, "frame", None)
        if frame is not None and len(predictions) > FEW_ROWS:
            return self.outputs_of_frame(frame, predictions)
        rows = inputs.rows() if self._reads_inputs else [()] * len(predictions)
        return self.outputs(rows, names, predictions)

    def outputs_of_frame(self, frame: pl.DataFrame, predictions: Sequence[float]) -> dict[str, list[Any]]:
        """The same for a frame that holds the inputs by name."""
        columns = [frame[name].cast(kind, strict=False) for name, kind in self._types.items() if name != PREDICTION]
        return self._select(columns, predictions)

    def _select(self, columns: list[pl.Series], predictions: Sequence[float]) -> dict[str, list[Any]]:
        import polars as pl

        said = pl.Series(PREDICTION, predictions, pl.Float64)
        return pl.DataFrame([*columns, said]).select(self._expressions).to_dict(as_series=False)

    @cached_property
    def _reads_inputs(self) -> bool:
        return bool(self.inputs.keys() - {PREDICTION})

    @cached_property
    def _types(self) -> dict[str, pl.DataType]:
        return {name: Field(dtype).polars for name, dtype in self.inputs.items()}

    @cached_property
    def _expressions(self) -> list[pl.Expr]:
        return [deserialised(name, output.expression).alias(name) for name, output in self.made.items()]

    def _cells(self, names: Sequence[str]) -> dict[str, Cell] | None:
        """What makes each output of one row, when all are folded; made once for a release's order of inputs."""
        known = self._by_names
        key = tuple(names)
        if key not in known:
            places = {name: place for place, name in enumerate(names)}
            folded = {name: output.folded for name, output in self.made.items()}
            whole = None not in folded.values()
            known[key] = {name: cell(parts, places) for name, parts in folded.items() if parts} if whole else None
        return known[key]

    @cached_property
    def _by_names(self) -> dict[tuple[str, ...], dict[str, Cell] | None]:
        return {}


@contextmanager
def _of_bundle(bundle: Path) -> Iterator[None]:
    """Whatever is wrong with the file is said of the bundle."""
    from mlops_assets.serving.bundle import BrokenBundleError

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenBundleError.of(bundle, FILE, f"{type(error).__name__}: {error}") from error


def _alike(said: Any, then: Any) -> bool:
    if isinstance(said, float) and isinstance(then, float):
        return isclose(said, then, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (said != said and then != then)  # noqa: PLR0124
    return bool(said == then)
