"""What may be wrong with a request, said so that its sender can mend it: row, field, problem, way out.

The exact judge of single rows. It takes its time: `request.Form` reads valid rows without it, and asks it only
about those that it could not say yes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from reprlib import Repr
from typing import Any, Self

from mlops_assets.fields import TypeName
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.plan import FeaturePlan
from mlops_assets.serving.transform import time_of

MAX_PROBLEMS = 100
SHORT = Repr()
SHORT.maxlevel = 3
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = 60
FLOAT32_MAX = 3.4028234663852886e38  # models read float32; larger would become infinite


def _is_time(value: Any) -> bool:
    """Text that a transform will read as a time."""
    try:
        return type(value) is str and bool(time_of(value))
    except (ValueError, OverflowError):  # the latter where no UTC calendar holds it
        return False


# An integer is a valid Float64, a bool is not a valid Int64; JSON has no NaN, but 1e999 parses to infinity.
VALID: dict[TypeName, tuple[Callable[[Any], bool], str]] = {
    "Bool": (lambda value: value is True or value is False, "true or false"),
    "Int64": (lambda value: type(value) is int and -(2**63) <= value < 2**63, "a whole number"),
    "Float64": (lambda value: type(value) in (int, float) and abs(value) <= FLOAT32_MAX, "a finite number"),
    "String": (lambda value: type(value) is str, "a string"),
    "UnixTimestamp": (_is_time, "a time as ISO-8601 text"),
    "Float64Array": (
        lambda value: type(value) is list and all(VALID["Float64"][0](number) for number in value),
        "an array of finite numbers",
    ),
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request; `row` counts from 0, None when it is the request as a whole."""

    problem: str
    fix: str
    field: str | None = None
    row: int | None = None


class InvalidRequestError(ValueError):
    """A request that is not answered, and why; `status` is the HTTP status that says so."""

    def __init__(self, problems: Sequence[Problem], status: int = 422) -> None:
        super().__init__(problems, status)
        self.problems = problems
        self.status = status

    @classmethod
    def of(cls, problem: str, fix: str, field: str | None = None, status: int = 422, row: int | None = None) -> Self:
        return cls([Problem(problem, fix, field, row)], status)

    def to_json(self) -> dict[str, Any]:
        return {"errors": [asdict(problem) for problem in self.problems[:MAX_PROBLEMS]]}


def problems(row: Mapping[str, Any], plan: FeaturePlan, schema: InputSchema) -> list[Problem]:
    """Everything wrong with one row; empty when it may be answered."""
    return list(_featured(row, plan, schema) if "features" in row else _keyed(row, plan))


def _keyed(row: Mapping[str, Any], plan: FeaturePlan) -> Iterator[Problem]:
    """A row of join keys and request features; the features of views are looked up."""
    yield from _label_key(row, plan)
    for entity in plan.entities:
        yield from _value(row, entity.join_key, entity.dtype, f"the key {entity.description}".strip(), nullable=False)
    for field in plan.request:
        yield from _value(row, field.name, field.dtype, field.description, nullable=True)
        yield from _length(row.get(field.name), field.name, field.size)
        yield from _bounds(row.get(field.name), field.name, field.dtype, field.minimum, field.maximum)
    known = {plan.key, *plan.join_keys, *(field.name for field in plan.request)}
    yield from _unknown(row, known, "looked up by the keys" if row.keys() & set(plan.inputs) - known else "")


def _featured(row: Mapping[str, Any], plan: FeaturePlan, schema: InputSchema) -> Iterator[Problem]:
    """A row that brings every input under `features`; keys are optional and nothing is looked up.

    Bounds are not applied: such rows come from tables that were checked when they were published.
    """
    yield from _label_key(row, plan)
    yield from _unknown(row, {plan.key, "features", *plan.join_keys}, "")
    for entity in plan.entities:
        if entity.join_key in row:
            yield from _value(row, entity.join_key, entity.dtype, entity.description, nullable=False)
    features = row["features"]
    if not isinstance(features, dict):
        yield Problem("not an object", f"Give every input: {', '.join(plan.inputs)}.", "features")
        return
    for column in schema.columns:
        yield from _value(features, column.name, column.dtype, column.description, nullable=True)
        yield from _length(features.get(column.name), column.name, column.size)
    yield from _unknown(features, set(plan.inputs), "")


def _label_key(row: Mapping[str, Any], plan: FeaturePlan) -> Iterator[Problem]:
    if plan.key in row and type(row[plan.key]) not in (str, int):
        yield Problem("not a string", "Give the id as text, or leave it out to be given one.", plan.key)


def _value(row: Mapping[str, Any], name: str, dtype: TypeName, meaning: str, *, nullable: bool) -> Iterator[Problem]:
    valid, phrase = VALID[dtype]
    given = row.get(name)
    if name not in row:
        yield Problem("missing", f"Give {name} as {phrase}{' or null' if nullable else ''} ({meaning or dtype}).", name)
    elif given is None and not nullable:
        yield Problem("null", f"Give {name} as {phrase}; without its key nothing can be looked up.", name)
    elif given is not None and not valid(given):
        yield Problem(f"{shown(given)} is not {phrase}", f"Give {name} as {phrase}.", name)


def _bounds(given: Any, name: str, dtype: TypeName, minimum: float | None, maximum: float | None) -> Iterator[Problem]:
    if given is None or dtype not in ("Int64", "Float64", "Float64Array") or not VALID[dtype][0](given):
        return
    numbers = given if type(given) is list else [given]
    if out_of(numbers, minimum, maximum):
        yield Problem(f"{shown(given)} is out of bounds", bounds_fix(name, minimum, maximum), name)


def out_of(numbers: Sequence[float], minimum: float | None, maximum: float | None) -> bool:
    """Does any lie outside its inclusive bounds?"""
    return any(
        (minimum is not None and number < minimum) or (maximum is not None and number > maximum) for number in numbers
    )


def bounds_fix(name: str, minimum: float | None, maximum: float | None) -> str:
    lowest, highest = "-inf" if minimum is None else minimum, "inf" if maximum is None else maximum
    return f"{name} lies between {lowest} and {highest}."


def _length(given: Any, name: str, size: int | None) -> Iterator[Problem]:
    if size is not None and isinstance(given, list) and len(given) != size:
        yield Problem(f"an array of {len(given)} numbers", f"{name} has {size} numbers.", name)


def _unknown(row: Mapping[str, Any], known: set[str], why: str) -> Iterator[Problem]:
    for name in sorted(map(str, row.keys() - known)):
        fix = f"It is {why}; leave it out or send all inputs under features." if why else "Leave it out."
        yield Problem("unknown field", f"{fix} Known: {', '.join(sorted(known))}.", name)


def shown(value: Any) -> str:
    """A value as an error shows it: however long or deep it is, only its beginning is looked at."""
    text = SHORT.repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
