"""Simple expressions answered without Polars: one row costs Polars a tenth of a millisecond, and these a microsecond.

What is folded: columns, literals, comparisons, and/or/not, is null, when/then, arithmetic of floats. A folded
expression is data (lists of words and numbers). It is only made where it gives what Polars gives on every
combination of values around its own numbers, nulls and NaN; any other expression is left to Polars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import copysign, inf, isnan, nan, nextafter, prod
from random import Random
from typing import TYPE_CHECKING, Any

from mlops_assets.fields import Field, TypeName

if TYPE_CHECKING:
    import polars as pl

Folded = list[Any]  # [word, part, ...]; see `_WORDS` and `_leaf`
Cell = Callable[[Sequence[Any], float], Any]  # of a row's values and its prediction
PREDICTION = "prediction"
PROOF_ROWS = 5000
EXACT = 2**53  # whole numbers below it are floats too
TYPES: dict[str, TypeName] = {"Float64": "Float64", "Int64": "Int64", "Boolean": "Bool", "String": "String"}


class _CannotFoldError(Exception):
    """Left to Polars."""


def fold(expression: pl.Expr, fields: Mapping[str, Field]) -> Folded | None:
    """The expression as words over columns of these types, or None where it is not simple enough."""
    try:
        _, folded = _folded(json.loads(expression.meta.serialize(format="json")), fields)
    except (_CannotFoldError, KeyError, TypeError, ValueError):  # a form that this Polars writes in another way
        return None
    return folded if _same_as_polars(expression, folded, fields) else None


def cell(folded: Folded, places: Mapping[str, int]) -> Cell:
    """What makes one value of a row; `places` says where in the row each column stands.

    Raises ValueError or KeyError for what is no folded expression.
    """
    word, *parts = folded
    if word in ("column", "value"):
        return _leaf(word, parts, places)
    function = _WORDS[word]
    made = [cell(part, places) for part in parts]
    if word == "if":
        condition, then, otherwise = made
        return lambda row, said: then(row, said) if condition(row, said) else otherwise(row, said)
    if len(made) == 1:
        (only,) = made
        return lambda row, said: function(only(row, said))
    left, right = made
    if parts[1][0] == "value":  # the usual comparison, one call less
        value = parts[1][1]
        return lambda row, said: function(left(row, said), value)
    return lambda row, said: function(left(row, said), right(row, said))


def _leaf(word: str, parts: Sequence[Any], places: Mapping[str, int]) -> Cell:
    (content,) = parts
    if word == "value":
        if not isinstance(content, bool | int | float | str | None):
            raise ValueError(content)
        return lambda _row, _said: content
    if content == PREDICTION:
        return lambda _row, said: said
    place = places[content]
    return lambda row, _said: row[place]


def _ordered(compare: Callable[[Any, Any], bool], with_nan: Callable[[bool, bool], bool]) -> Callable[[Any, Any], Any]:
    """A comparison as Polars does it: null for null, NaN equal to itself and above all else."""

    def compared(left: Any, right: Any) -> bool | None:
        if left is None or right is None:
            return None
        if left == left and right == right:  # noqa: PLR0124  only NaN differs from itself
            return compare(left, right)
        return with_nan(left != left, right != right)  # noqa: PLR0124

    return compared


def _both(left: Any, right: Any) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _either(left: Any, right: Any) -> bool | None:
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def _unless_null(compute: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: None if None in values else compute(*values)


def _divided(left: float, right: float) -> float:
    if right:
        return left / right
    return nan if not left or isnan(left) else copysign(inf, left) * copysign(1.0, right)


_WORDS: dict[str, Callable[..., Any]] = {
    "<": _ordered(lambda a, b: a < b, lambda a, b: b and not a),
    "<=": _ordered(lambda a, b: a <= b, lambda _, b: b),
    ">": _ordered(lambda a, b: a > b, lambda a, b: a and not b),
    ">=": _ordered(lambda a, b: a >= b, lambda a, _: a),
    "==": _ordered(lambda a, b: a == b, lambda a, b: a and b),
    "!=": _ordered(lambda a, b: a != b, lambda a, b: not (a and b)),
    "and": _both,
    "or": _either,
    "not": _unless_null(lambda value: not value),
    "is null": lambda value: value is None,
    "is not null": lambda value: value is not None,
    "float": _unless_null(float),
    "+": _unless_null(lambda a, b: a + b),
    "-": _unless_null(lambda a, b: a - b),
    "*": _unless_null(lambda a, b: a * b),
    "/": _unless_null(_divided),
    "if": lambda condition, then, otherwise: then if condition else otherwise,
}
_COMPARISONS = {"Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">=", "Eq": "==", "NotEq": "!="}
_LOGIC = {"And": "and", "LogicalAnd": "and", "Or": "or", "LogicalOr": "or"}
_ARITHMETIC = {"Plus": "+", "Minus": "-", "Multiply": "*", "TrueDivide": "/"}
_ALONE = {"Not": "not", "IsNull": "is null", "IsNotNull": "is not null"}
Typed = tuple[TypeName | None, Folded]  # None: the type of null


def _folded(node: Mapping[str, Any], fields: Mapping[str, Field]) -> Typed:
    ((kind, content),) = node.items()
    folder = _FOLDERS.get(kind)
    if folder is None:
        raise _CannotFoldError(kind)
    return folder(content, fields)


def _column(name: str, fields: Mapping[str, Field]) -> Typed:
    dtype = fields[name].dtype
    if dtype not in TYPES.values():
        raise _CannotFoldError(dtype)
    # A caller may write a float without its point.
    return dtype, ["float", ["column", name]] if dtype == "Float64" and name != PREDICTION else ["column", name]


def _literal(content: Mapping[str, Any], _: Mapping[str, Field]) -> Typed:
    ((_kind, value),) = content.items()
    ((name, number),) = value.items()
    types: dict[str, TypeName | None] = {
        **dict.fromkeys(("Float", "Float64"), "Float64"),
        **dict.fromkeys(("Int", "Int64", "Int32"), "Int64"),
        "Boolean": "Bool",
        "String": "String",
        "Null": None,
    }
    return types[name], ["value", None if name == "Null" else number]


def _binary(content: Mapping[str, Any], fields: Mapping[str, Field]) -> Typed:
    operator, left, right = content["op"], _folded(content["left"], fields), _folded(content["right"], fields)
    if operator in _LOGIC and left[0] == right[0] == "Bool":
        return "Bool", [_LOGIC[operator], left[1], right[1]]
    dtype, (one, other) = _alike(left, right)
    if operator in _COMPARISONS and dtype:
        return "Bool", [_COMPARISONS[operator], one, other]
    if operator == "TrueDivide" and dtype == "Float64" and other[0] == "value" and other[1]:
        return "Float64", ["*", one, ["value", 1 / other[1]]]  # what Polars makes of it for many rows
    if operator in _ARITHMETIC and dtype == "Float64":
        return "Float64", [_ARITHMETIC[operator], one, other]
    raise _CannotFoldError(operator)


def _alike(left: Typed, right: Typed) -> tuple[TypeName | None, tuple[Folded, Folded]]:
    """Both in one type, as Polars brings them there."""
    if left[0] == right[0] or right[0] is None:
        return left[0], (left[1], right[1])
    if left[0] is None:
        return right[0], (left[1], right[1])
    if {left[0], right[0]} == {"Int64", "Float64"}:
        return "Float64", (_as_float(left), _as_float(right))
    raise _CannotFoldError(left[0], right[0])


def _as_float(part: Typed) -> Folded:
    dtype, folded = part
    if dtype == "Float64":
        return folded
    return ["value", float(folded[1])] if folded[0] == "value" else ["float", folded]


def _ternary(content: Mapping[str, Any], fields: Mapping[str, Field]) -> Typed:
    condition = _folded(content["predicate"], fields)
    dtype, (then, otherwise) = _alike(_folded(content["truthy"], fields), _folded(content["falsy"], fields))
    if condition[0] != "Bool":
        raise _CannotFoldError(condition[0])
    return dtype, ["if", condition[1], then, otherwise]


def _cast(content: Mapping[str, Any], fields: Mapping[str, Field]) -> Typed:
    part, wanted = _folded(content["expr"], fields), TYPES[content["dtype"]["Literal"]]
    if part[0] in (wanted, None):
        return wanted, part[1]
    if (part[0], wanted) == ("Int64", "Float64"):
        return wanted, _as_float(part)
    raise _CannotFoldError(wanted)


def _function(content: Mapping[str, Any], fields: Mapping[str, Field]) -> Typed:
    function, parts = content["function"], [_folded(part, fields) for part in content["input"]]
    kind = function["Boolean"]
    if kind in _ALONE and (kind != "Not" or parts[0][0] == "Bool"):
        return "Bool", [_ALONE[kind], parts[0][1]]
    raise _CannotFoldError(kind)


def _alias(content: Sequence[Any], fields: Mapping[str, Field]) -> Typed:
    return _folded(content[0], fields)


_FOLDERS: dict[str, Callable[[Any, Mapping[str, Field]], Typed]] = {
    "Alias": _alias,
    "BinaryExpr": _binary,
    "Cast": _cast,
    "Column": _column,
    "Function": _function,
    "Literal": _literal,
    "Ternary": _ternary,
}


def _same_as_polars(expression: pl.Expr, folded: Folded, fields: Mapping[str, Field]) -> bool:
    """Both say the same of every combination of values that could make a difference, up to `PROOF_ROWS` of them."""
    import polars as pl

    names = list(dict.fromkeys(expression.meta.root_names()))
    told = list(_values(folded))
    rows = _combinations([_samples(fields[name].dtype, told) for name in names])
    frame = pl.DataFrame(
        [
            pl.Series(name, column, fields[name].polars)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        ]
    )
    made = cell(folded, {name: place for place, name in enumerate(names)})
    said = names.index(PREDICTION) if PREDICTION in names else None
    mine = [made(row, nan if said is None else row[said]) for row in rows]
    try:
        polars = frame.select(expression.alias("made"))["made"]
        return polars.equals(pl.Series("made", mine, polars.dtype, strict=True), null_equal=True)
    except (pl.exceptions.PolarsError, TypeError):
        return False


def _combinations(samples: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """All of them, or where these are too many, as many drawn at random."""
    if prod(map(len, samples)) <= PROOF_ROWS:
        return list(product(*samples))
    draw = Random(0)  # noqa: S311  no secret: the same rows each time
    return [tuple(draw.choice(column) for column in samples) for _ in range(PROOF_ROWS)]


def _values(folded: Folded) -> Iterator[Any]:
    """The literals of a folded expression."""
    word, *parts = folded
    if word == "value":
        yield from parts
    elif word != "column":
        for part in parts:
            yield from _values(part)


def _samples(dtype: TypeName, told: Sequence[Any]) -> list[Any]:
    """Values of a type, first those at which an expression with these literals may change its mind."""
    numbers = [number for number in told if isinstance(number, int | float) and not isinstance(number, bool)]
    whole = [int(number) for number in numbers if abs(number) < EXACT]
    samples: dict[str, list[Any]] = {
        "Float64": [
            *(near for number in numbers for near in (nextafter(number, -inf), float(number), nextafter(number, inf))),
            *(0.0, -1.5, 1e300, nan, inf, -inf),
        ],
        "Int64": [*(number + step for number in whole for step in (-1, 0, 1)), 0, -7, 40],
        "Bool": [True, False],
        "String": [*(text for text in told if isinstance(text, str)), "", "another"],
    }
    return [*dict.fromkeys(samples[dtype]), None]
