"""A view's rows brought into the repository's own online store by Feast, and read back through Feast.

A run continues where Feast's last materialization of the view ended, or starts a ttl before its end; `start` and
`end` say otherwise. The rule that must never break: what the online store answers is the newest row of the source.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import dagster as dg

from mlops_assets.adoption.registry import View
from mlops_assets.adoption.repository import FeastRepository
from mlops_assets.adoption.source_checks import BEGINNING, TIME, shape_of
from mlops_assets.claims import EXAMPLES, Claim

if TYPE_CHECKING:
    import polars as pl
    from feast import FeatureStore

SAMPLE = 50
PROMISE = "The online store answers sampled keys with their newest row, through plain Feast"
STAMP = "__ts"  # Feast's suffix of a feature's event time, in whole seconds; 0 where it holds nothing


class StaleDefinitionsError(LookupError):
    """The registry no longer says what the definitions were built from."""

    @classmethod
    def of(cls, repository: FeastRepository, view: str, problem: str) -> Self:
        again = "Reload" if repository.file else f"Run mlops features adopt {repository.root}, then reload"
        return cls(
            f"Feature view {view!r} of {repository.project!r} {problem}; its definitions were read before that. "
            f"{again} the code location. Nothing was materialized."
        )


class Window(dg.Config):
    """The time range to bring online, as ISO times with a zone; by default from the last one's end until now."""

    start: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Range:
    """From `start` to `end`, in UTC; `done` when Feast had materialized it before."""

    start: datetime
    end: datetime
    done: bool = False


def range_of(window: Window, last: datetime | None, view: View, now: datetime) -> Range:
    """What to materialize, given where the last run ended."""
    end, start = _moment("end", window.end) or now, _moment("start", window.start)
    if start is not None and start >= end:
        raise dg.Failure(
            f"start {start} is not before end {end}. Give an earlier start or a later end.", allow_retries=False
        )
    if start is None and last is not None and last >= end:
        return Range(last, last, done=True)
    return Range(start or last or (end - view.ttl if view.ttl else BEGINNING), end)


def _moment(name: str, told: str | None) -> datetime | None:
    if told is None:
        return None
    moment = _iso(name, told)
    if moment.tzinfo is None:
        raise dg.Failure(
            f"{name} is {told!r}, a time without a zone. Write it with one, e.g. 2026-04-01T00:00:00+00:00.",
            allow_retries=False,
        )
    return moment.astimezone(UTC)


def _iso(name: str, told: str) -> datetime:
    try:
        return datetime.fromisoformat(told)
    except ValueError as error:
        raise dg.Failure(
            f"{name} is {told!r}, no ISO time. Write it so: 2026-04-01T00:00:00+00:00.", allow_retries=False
        ) from error


def materialize(repository: FeastRepository, store: "FeatureStore", view: View, window: Window) -> Range:
    """Bring a view online. Raises StaleDefinitionsError where the registry now says something else of it."""
    with repository.lock:
        live = _live(repository, store, view)
        wanted = range_of(window, getattr(live, "most_recent_end_time", None), view, datetime.now(UTC))
        if not wanted.done:
            store.materialize(wanted.start, wanted.end, [view.name])
    return wanted


def _live(repository: FeastRepository, store: "FeatureStore", view: View) -> Any:
    """The view as Feast has it at this moment, with the features that we know."""
    from feast.errors import FeatureViewNotFoundException

    try:
        live = store.registry.get_any_feature_view(view.name, store.project)
    except FeatureViewNotFoundException as error:
        raise StaleDefinitionsError.of(repository, view.name, "is no longer registered") from error
    features = [feature.name for feature in live.features]
    if {*features, *(key.name for key in view.keys)} != {column.name for column in view.columns}:
        raise StaleDefinitionsError.of(repository, view.name, f"now has the features {', '.join(features)}")
    return live


def answers_newest_row(store: "FeatureStore", view: View, newest: "pl.DataFrame", now: datetime) -> Claim:
    """Sampled keys, compared value by value; a pushed row that is newer, and null for what is over, are right too."""
    sample = newest.sample(min(SAMPLE, newest.height), seed=0)
    if sample.is_empty():
        return Claim("answers_newest_row", True, "No row whose ttl is not over: nothing to answer with")
    answers = _online(store, view, [{key.name: row[key.name] for key in view.keys} for row in sample.to_dicts()])
    wrong = [
        f"{tuple(row[key.name] for key in view.keys)} {feature.name}: {answer[feature.name]!r} online, "
        f"{row[feature.name]!r} offline of {row[TIME]:%Y-%m-%dT%H:%M:%S}"
        for row, answer in zip(sample.to_dicts(), answers, strict=True)
        if not _excused(row, answer, view, now)
        for feature in view.features
        if plain(row[feature.name], feature.type) != plain(answer[feature.name], feature.type)
    ]
    examples = f", e.g. {'; '.join(wrong[:EXAMPLES])}" if wrong else ""
    said = f"{len(wrong)} values differ{examples}"
    return Claim("answers_newest_row", not wrong, said, numbers={"keys_read_back": sample.height})


def _online(store: "FeatureStore", view: View, keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Feast answers each key; a view without entities has one row, under a key that Feast makes up."""
    from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

    keys = [key or {DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL} for key in keys]
    answer = store.get_online_features(
        features=[f"{view.name}:{feature.name}" for feature in view.features], entity_rows=keys
    ).to_dict(include_event_timestamps=True)
    return [{name: values[place] for name, values in answer.items()} for place in range(len(keys))]


def _excused(row: dict[str, Any], answer: dict[str, Any], view: View, now: datetime) -> bool:
    stamps = [answer[f"{feature.name}{STAMP}"] for feature in view.features]
    newer = min(stamps) > row[TIME].timestamp()
    over = view.ttl is not None and row[TIME] < now - view.ttl
    return newer or (over and all(answer[feature.name] is None for feature in view.features))


def plain(value: Any, kind: str) -> Any:
    """A value so that equal ones compare equal, whichever way they went: through Parquet, or protobuf and back."""
    base, shape = shape_of(kind)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if shape:
        items = [plain(item, base) for item in value]
        return sorted(items, key=repr) if shape == "SET" else items
    if base == "UNIX_TIMESTAMP":
        return _second(value)
    if base in ("JSON", "MAP", "STRUCT"):
        return json.loads(value) if isinstance(value, str) else value
    return _single(value) if base == "FLOAT" else value


def _single(value: float) -> float:
    """As 32 bits hold it: the source may have 64."""
    import numpy as np

    return float(np.float32(value))


def _second(value: Any) -> int:
    """Feast keeps times in whole seconds."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
