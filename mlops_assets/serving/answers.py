"""What goes through the serving process: the rows of a request as one release reads them, and what it says to them.

One request is one `Question` (or one for each release that its rows fall to) and one `Answers` for each. Columns,
not rows, wherever a batch of a thousand would feel the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from mlops_assets.input_schema import InputSchema

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mlops_assets.serving.plan import Looked
    from resources.releases import Variant

STAGES = ("look_up", "preprocess", "model", "postprocess")


class Inputs(Protocol):
    """All inputs of a model for some rows, in the order of its plan."""

    def matrix(self, schema: InputSchema) -> NDArray[np.float32]:
        """float32 of shape (rows, numbers), NaN where missing. Raises InputError."""
        ...

    def rows(self) -> Sequence[Sequence[Any]]:
        """The values as they were given or found; None where missing."""
        ...

    def columns(self) -> Sequence[Any]:
        """The same by input: each something that `polars.Series` takes."""
        ...

    def take(self, places: Sequence[int]) -> Inputs: ...


@dataclass(slots=True, frozen=True)
class RowInputs:
    """A few rows of Python values."""

    values: Sequence[Sequence[Any]]

    def matrix(self, schema: InputSchema) -> NDArray[np.float32]:
        return schema.encode(self.values)

    def rows(self) -> Sequence[Sequence[Any]]:
        return self.values

    def columns(self) -> Sequence[Sequence[Any]]:
        return list(zip(*self.values, strict=True))

    def take(self, places: Sequence[int]) -> RowInputs:
        return RowInputs([self.values[place] for place in places])


@dataclass(slots=True, frozen=True)
class FrameInputs:
    """Many rows as a frame that holds exactly the inputs, in the plan's order."""

    frame: pl.DataFrame

    def matrix(self, schema: InputSchema) -> NDArray[np.float32]:
        return schema.encode_frame(self.frame)

    def rows(self) -> Sequence[Sequence[Any]]:
        return self.frame.rows()

    def columns(self) -> Sequence[pl.Series]:
        return self.frame.get_columns()

    def take(self, places: Sequence[int]) -> FrameInputs:
        return FrameInputs(self.frame[list(places)])


@dataclass(slots=True, frozen=True)
class Question:
    """Valid rows for one release: either `asked` by keys, to be looked up, or `given` with every input.

    `ids` has one request id a row. `keys` holds the entity keys by join key, a value a row, of those join keys that
    the rows named. `asked` is what look-up needs of each row: join keys and request features by name.
    """

    at: datetime
    ids: Sequence[str]
    keys: Mapping[str, Sequence[Any]]
    asked: Sequence[Mapping[str, Any]] | None = None
    given: Inputs | None = None

    @property
    def size(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Answers:
    """What one release says to the rows of one question, in their order.

    `looked` is what look-up found, a row each, None where the rows brought their inputs. `outputs` are the columns of
    post-processing, by name. `latency_ms` is the request's, the same for all its rows. `instead_of` names the
    challenger that failed to answer where the champion did it for it. `stages` are the seconds of each of STAGES.
    """

    model: str
    variant: Variant
    question: Question
    names: Sequence[str]
    inputs: Inputs
    predictions: Sequence[float]
    outputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    looked: Sequence[Looked] | None = None
    stages: Sequence[float] = ()
    latency_ms: float = 0.0
    instead_of: str | None = None
