"""The words a schema is written in: Feast's own type names, each with a meaning, a unit and bounds.

`Float64` stands alone in a schema, or is called to say more:
`"temp": Float64("Air temperature", unit="degF", minimum=-60, maximum=140)`. An array says its length:
`"embedding": Float64Array("Where it flies", size=8)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import polars as pl

TypeName = Literal["Bool", "Int64", "Float64", "String", "UnixTimestamp", "Float64Array"]


@dataclass(frozen=True)
class Field:
    """One column: its Feast type and what a value of it means.

    `minimum` and `maximum` are inclusive bounds of a sane value; `max_null_share` is the largest
    share (0 to 1) of nulls a partition may hold. All three are checked when the column is published.
    `size` is the length of every array of the column; its bounds hold for each element.
    """

    dtype: TypeName
    description: str = ""
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    max_null_share: float = 1.0
    size: int | None = None

    def __call__(
        self,
        description: str,
        unit: str | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
        max_null_share: float = 1.0,
        size: int | None = None,
    ) -> Self:
        return replace(
            self,
            description=description,
            unit=unit,
            minimum=minimum,
            maximum=maximum,
            max_null_share=max_null_share,
            size=size,
        )

    @property
    def polars(self) -> pl.DataType:
        """The Polars type a published column of this field has; times are UTC microseconds."""
        import polars as pl

        return {
            "Bool": pl.Boolean(),
            "Int64": pl.Int64(),
            "Float64": pl.Float64(),
            "String": pl.String(),
            "UnixTimestamp": pl.Datetime("us", "UTC"),
            "Float64Array": pl.List(pl.Float64()),
        }[self.dtype]

    @property
    def meaning(self) -> str:
        """Description and unit in one phrase, as shown in column schemas."""
        return f"{self.description} [{self.unit}]" if self.unit else self.description


Bool = Field("Bool")
Int64 = Field("Int64")
Float64 = Field("Float64")
String = Field("String")
UnixTimestamp = Field("UnixTimestamp")
Float64Array = Field("Float64Array")
# What the answer of a model of several classes says beside the class.
CONFIDENCE = "confidence"
CONFIDENT = Float64("Probability of the class that was chosen", minimum=0, maximum=1)
