"""What is answered, in the order of the request's rows, whatever it is then written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from mlops_assets.serving.answers import Answers

# The rows of the request that they are of, None for all of them, and the answers of one release to those.
Part: TypeAlias = tuple[Sequence[int] | None, Answers]


def reply_rows(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Each answer as an object."""
    if len(parts) == 1 and parts[0][0] is None:
        return _rows(parts[0][1])
    placed = {place: row for places, answers in parts for place, row in _placed(places, _rows(answers))}
    return [placed[place] for place in sorted(placed)]


def reply_columns(parts: Sequence[Part]) -> dict[str, list[Any]]:
    """The same as columns; None where a release has no such output."""
    if len(parts) == 1 and parts[0][0] is None:
        return _columns(parts[0][1])
    rows = reply_rows(parts)
    names = dict.fromkeys(name for _, answers in parts for name in _columns(answers))
    return {name: [row.get(name) for row in rows] for name in names}


def _columns(answers: Answers) -> dict[str, list[Any]]:
    variant, size = answers.variant, len(answers.predictions)
    return {
        "request_id": [*answers.question.ids],
        "prediction": [*answers.predictions],
        **{name: [*column] for name, column in answers.outputs.items()},
        "release": [variant.release] * size,
        "version": [variant.version] * size,
        "variant": [variant.role] * size,
        "fallbacks": [[]] * size if answers.looked is None else [looked.fallbacks for looked in answers.looked],
    }


def _placed(places: Sequence[int] | None, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return zip(range(len(rows)) if places is None else places, rows, strict=True)


def _rows(answers: Answers) -> list[dict[str, Any]]:
    variant = answers.variant
    release, version, role = variant.release, variant.version, variant.role
    none: list[Any] = []
    rows: list[dict[str, Any]] = [
        {
            "request_id": request_id,
            "prediction": prediction,
            "release": release,
            "version": version,
            "variant": role,
            "fallbacks": none,
        }
        for request_id, prediction in zip(answers.question.ids, answers.predictions, strict=True)
    ]
    if answers.looked is not None:
        for row, looked in zip(rows, answers.looked, strict=True):
            row["fallbacks"] = looked.fallbacks
    for name, column in answers.outputs.items():
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return rows
