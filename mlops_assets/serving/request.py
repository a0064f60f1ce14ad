"""What a caller may send, and what is said when it is not that.

The rule: a request is answered only when every row of it is exactly what the model's plan asks for;
otherwise nothing is answered and each problem names its row, its field and the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from mlops_assets.fields import TypeName
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.plan import FeaturePlan

MAX_ROWS = 1000
MAX_BODY = 8 * 1024 * 1024
MAX_PROBLEMS = 100
FLOAT32_MAX = 3.4028234663852886e38  # models read float32; larger would become infinite
EXAMPLE = '{"rows": [{...}], "at": "2013-04-01T12:00:00+00:00"}'

# An integer is a valid Float64, a bool is not a valid Int64; JSON has no NaN, but 1e999 parses to infinity.
VALID: dict[TypeName, tuple[Callable[[Any], bool], str]] = {
    "Bool": (lambda value: value is True or value is False, "true or false"),
    "Int64": (lambda value: type(value) is int and -(2**63) <= value < 2**63, "a whole number"),
    "Float64": (lambda value: type(value) in (int, float) and abs(value) <= FLOAT32_MAX, "a finite number"),
    "String": (lambda value: type(value) is str, "a string"),
    "UnixTimestamp": (lambda value: type(value) is str, "a time as ISO-8601 text"),
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
    def of(cls, problem: str, fix: str, field: str | None = None, status: int = 422) -> Self:
        return cls([Problem(problem, fix, field)], status)

    def to_json(self) -> dict[str, Any]:
        return {"errors": [asdict(problem) for problem in self.problems[:MAX_PROBLEMS]]}


@dataclass(frozen=True)
class Question:
    """Rows as sent, and the moment they ask about."""

    rows: list[dict[str, Any]]
    at: datetime


def read_question(body: bytes) -> Question:
    """Parse a request body; InvalidRequestError when it is not a list of objects and a time with a zone."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError.of(f"the body is not JSON ({error})", f"Send {EXAMPLE}.") from error
    if not isinstance(asked, dict):
        raise InvalidRequestError.of("the body is not an object", f"Send {EXAMPLE}.")
    if unknown := sorted(asked.keys() - {"rows", "at"}):
        raise InvalidRequestError.of("unknown field", "Use rows and at.", ", ".join(unknown))
    return Question(_rows(asked.get("rows")), _moment(asked.get("at")))


def _rows(rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not rows:
        raise InvalidRequestError.of("rows is missing or empty", f"Send {EXAMPLE}.", "rows")
    if len(rows) > MAX_ROWS:
        raise InvalidRequestError.of(f"{len(rows)} rows", f"Send at most {MAX_ROWS} rows in a request.", "rows")
    if wrong := [index for index, row in enumerate(rows) if not isinstance(row, dict)]:
        raise InvalidRequestError([Problem("not an object", f"Send {EXAMPLE}.", None, index) for index in wrong])
    return rows


def _moment(at: Any) -> datetime:
    if at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
        problem = "a time without a zone"
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"not a time ({error})"
    raise InvalidRequestError.of(problem, "Write ISO-8601 with a zone, e.g. 2013-04-01T12:00:00+00:00.", "at")


def problems(row: Mapping[str, Any], plan: FeaturePlan, schema: InputSchema) -> list[Problem]:
    """Everything wrong with one row; empty when it may be answered."""
    return list(_featured(row, plan, schema) if "features" in row else _keyed(row, plan))


def request_id(row: Mapping[str, Any], plan: FeaturePlan) -> str | None:
    """The caller's own id of the row: the label key, when it is given."""
    given = row.get(plan.key)
    return None if given is None else str(given)


def _keyed(row: Mapping[str, Any], plan: FeaturePlan) -> Iterator[Problem]:
    """A row of join keys and request features; the features of views are looked up."""
    yield from _label_key(row, plan)
    for entity in plan.entities:
        yield from _value(row, entity.join_key, entity.dtype, f"the key {entity.description}".strip(), nullable=False)
    for field in plan.request:
        yield from _value(row, field.name, field.dtype, field.description, nullable=True)
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
        yield Problem(f"{_shown(given)} is not {phrase}", f"Give {name} as {phrase}.", name)


def _bounds(given: Any, name: str, dtype: TypeName, minimum: float | None, maximum: float | None) -> Iterator[Problem]:
    if given is None or not VALID[dtype][0](given):
        return
    if (minimum is not None and given < minimum) or (maximum is not None and given > maximum):
        lowest, highest = "-inf" if minimum is None else minimum, "inf" if maximum is None else maximum
        yield Problem(f"{_shown(given)} is out of bounds", f"{name} lies between {lowest} and {highest}.", name)


def _length(given: Any, name: str, size: int | None) -> Iterator[Problem]:
    if size is not None and isinstance(given, list) and len(given) != size:
        yield Problem(f"an array of {len(given)} numbers", f"{name} has {size} numbers.", name)


def _unknown(row: Mapping[str, Any], known: set[str], why: str) -> Iterator[Problem]:
    for name in sorted(row.keys() - known):
        fix = f"It is {why}; leave it out or send all inputs under features." if why else "Leave it out."
        yield Problem("unknown field", f"{fix} Known: {', '.join(sorted(known))}.", name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
