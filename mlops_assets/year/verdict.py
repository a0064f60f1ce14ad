"""What must be true of a year that ran by itself; each claim is judged from the stores, not from what the replay did.

A claim about something that a short replay does not contain (a refusal, an episode of drift) is only made of a replay
of `LONG` days or more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, ModelPipeline
from mlops_assets.links.spec import link_key
from mlops_assets.year.callers import departures, midnight
from mlops_assets.year.incidents import BAD_DEPLOYER, Incidents
from mlops_assets.year.journal import Day

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

LONG = 120
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Year:
    """What is judged: the days lived, the model, and the instance that ran them."""

    model: ModelPipeline
    catalog: Catalog
    instance: dg.DagsterInstance
    incidents: Incidents
    days: Sequence[Day]

    @property
    def dates(self) -> list[date]:
        return [date.fromisoformat(one.day) for one in self.days]


def claims(year: Year) -> Iterator[Claim]:
    """Every claim, judged."""
    yield no_prediction_lost_or_doubled(year)
    yield every_promotion_passed_its_gate(year)
    yield every_retraining_has_its_cause(year)
    yield from (online_equals_rebuild(year, view) for view in year.catalog.views if view.online)
    yield outage_alerted(year)
    yield outage_did_not_retrain(year)
    yield breaker_ended_the_bad_release(year)
    yield duplicate_changed_nothing(year)
    yield correction_reached_the_labels(year)
    if len(year.days) >= LONG:
        yield there_was_drift(year)
        yield a_candidate_was_refused(year)


def no_prediction_lost_or_doubled(year: Year) -> Claim:
    """The table of each day has every flight asked about, once, and the log of no writer has a gap."""
    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.environment import resources_for

    lake, key = resources_for()["lake"], link_key(year.model, "predictions")
    lost = doubled = asked = 0
    for day in year.dates:
        due = set(departures(year.model, day)[year.model.labels.key])
        told = lake.scan(key, [str(day)]).select("request_id").collect()["request_id"]
        asked, lost, doubled = asked + len(due), lost + len(due - set(told)), doubled + len(told) - told.n_unique()
    gaps = PredictionLog().gaps(year.model.id)
    return Claim(
        "no prediction lost or doubled",
        not lost and not doubled and not gaps.lines and not gaps.dropped,
        f"{asked} asked about, {lost} not in the tables, {doubled} twice; {gaps.lines} missing and {gaps.dropped} "
        "dropped in the log",
    )


def every_promotion_passed_its_gate(year: Year) -> Claim:
    """Each version that the alias was moved to, and each that answered, is tagged as passed."""
    from resources.champions import ChampionStore
    from resources.environment import resources_for
    from resources.releases import ReleaseStore

    mlflow = resources_for()["mlflow"]
    crowned = [move.after for move in ChampionStore().history(year.model.id)]
    released = [
        variant.version
        for change in ReleaseStore().history(year.model.id)
        if change.by != BAD_DEPLOYER
        for variant in change.after
    ]
    versions = sorted({*crowned, *released}, key=int)
    gates = {version: mlflow.version(year.model.registered_name, version).tags.get("gate") for version in versions}
    unjudged = [version for version, gate in gates.items() if gate != "passed"]
    return Claim(
        "every promotion passed its gate",
        bool(versions) and not unjudged,
        f"{len(crowned)} moves of the champion, versions {', '.join(versions)}; without a passed gate: "
        f"{', '.join(unjudged) or 'none'}",
    )


def every_retraining_has_its_cause(year: Year) -> Claim:
    """Each training after the first is of a cutoff that a recorded decision asked for, with its reasons."""
    key = link_key(year.model, "candidate")
    trained = sorted(year.instance.get_materialized_partitions(key))
    asked = {str(one.evidence.get("cutoff")): one.reasons for one in decided(year, "retrain", "retrain")}
    causeless = [cutoff for cutoff in trained[1:] if not asked.get(cutoff)]
    return Claim(
        "every retraining has its cause",
        not causeless,
        f"{max(len(trained) - 1, 0)} retrainings, {len(asked)} decisions; without a cause: "
        f"{', '.join(causeless) or 'none'}",
    )


def online_equals_rebuild(year: Year, view: FeatureView) -> Claim:
    """What the online store holds is what the view's function makes of everything delivered, computed at once."""
    from mlops_assets.links.online import newest_rows
    from mlops_assets.links.snapshot import held_online
    from resources.environment import resources_for

    rebuilt = newest_rows(recomputed(year.catalog, view, midnight(year.dates[-1]) + DAY), view, None)
    held, columns = held_online(resources_for()["feast"], view), list(view.columns)
    same = _in_order(rebuilt, view).select(columns).equals(_in_order(held, view).select(columns), null_equal=True)
    return Claim(f"{view.id} online equals a rebuild", same, f"{held.height} keys held, {rebuilt.height} rebuilt")


def recomputed(catalog: Catalog, view: FeatureView, until: Any) -> pl.LazyFrame:
    """The rows of a view by its own function over all that its inputs hold."""
    import polars as pl

    from mlops_assets.claims import conform
    from mlops_assets.links.table import computed
    from resources.environment import resources_for

    lake = resources_for()["lake"]
    inputs = {name: lake.scan(asset_key(table)) for name, table in catalog.inputs(view)}
    rows = conform(computed(view, inputs, None), view).lazy()
    return rows.filter(pl.col(EVENT_TIMESTAMP) < until)


def _in_order(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    return rows.sort(view.join_keys) if view.join_keys else rows


def outage_alerted(year: Year) -> Claim:
    """Of the days of the outage one at least was judged a broken pipeline, and people were told."""
    days = _of_outage(year)
    judged = [one.day for one in decided(year, "retrain", "broken pipeline") if one.day in days]
    told = [one for one in decided(year, "alert", "told") if one.day in days]
    return Claim(
        "the outage led to an alert",
        bool(judged and told),
        f"{len(judged)} decisions 'broken pipeline', {len(told)} alerts told between {days[0]} and {days[-1]}",
    )


def outage_did_not_retrain(year: Year) -> Claim:
    days = _of_outage(year)
    asked = [str(one.day) for one in decided(year, "retrain", "retrain") if one.day in days]
    return Claim("the outage led to no retraining", not asked, f"asked for on: {', '.join(asked) or 'no day'}")


def _of_outage(year: Year) -> list[date]:
    first = year.incidents.outage
    return [first + timedelta(days=i) for i in range((year.incidents.back - first).days)]


def breaker_ended_the_bad_release(year: Year) -> Claim:
    """The serving process took it out; no caller got an error, since the champion answered instead."""
    from resources.releases import ReleaseStore

    history = ReleaseStore().history(year.model.id)
    begun = [change for change in history if change.by == BAD_DEPLOYER]
    ended = [change for change in history if change.action == "circuit breaker"]
    return Claim(
        "the circuit breaker ended the bad release",
        bool(begun and ended),
        "; ".join(change.why for change in ended) or f"{len(begun)} begun, none ended by the breaker",
    )


def duplicate_changed_nothing(year: Year) -> Claim:
    """The day that came twice was materialized twice, with the same data version, and nothing downstream ran again."""
    day = year.incidents.delivered_twice
    raw = _versions(year, "flights/raw_flights", day)
    labels = _versions(year, year.model.labels.id, day)
    return Claim(
        "the duplicate delivery changed nothing",
        len(raw) > 1 and len(set(raw)) == 1 and len(labels) == 1,
        f"{day}: raw flights {len(raw)} times in {len(set(raw))} versions, labels {len(labels)} times",
    )


def correction_reached_the_labels(year: Year) -> Claim:
    day = year.incidents.corrected
    labels = _versions(year, year.model.labels.id, day)
    return Claim(
        "the late correction reached the labels",
        len(set(labels)) > 1,
        f"{day}: labels of {len(set(labels))} versions, materialized {len(labels)} times",
    )


def _versions(year: Year, table: str, day: date) -> list[str]:
    """The data versions under which a day of a table was published, one for each materialization."""
    import dagster as dg
    from dagster._core.definitions.data_version import DATA_VERSION_TAG

    wanted = dg.AssetRecordsFilter(dg.AssetKey(table.split("/")), asset_partitions=[str(day)])
    records = year.instance.fetch_materializations(wanted, limit=20).records
    return [
        told.tags.get(DATA_VERSION_TAG, "")
        for record in records
        if (told := record.asset_materialization) and told.tags is not None
    ]


def there_was_drift(year: Year) -> Claim:
    drifting = [one.day for one in year.days if one.reports.get("drift_report", {}).get("verdict") == "drift"]
    return Claim("there was drift", bool(drifting), f"on {len(drifting)} of {len(year.days)} days")


def a_candidate_was_refused(year: Year) -> Claim:
    from resources.environment import resources_for

    client = resources_for()["mlflow"].client()
    found = client.search_model_versions(f"name = '{year.model.registered_name}'")
    refused = sorted((one.version for one in found if one.tags.get("gate") == "refused"), key=int)
    return Claim("a candidate was refused", bool(refused), f"versions {', '.join(map(str, refused)) or 'none'}")


def decided(year: Year, kind: str, outcome: str) -> list[Any]:
    from resources.decisions import DecisionStore

    return [one for one in DecisionStore().history(year.model.id) if (one.kind, one.outcome) == (kind, outcome)]


def as_json(judged: Sequence[Claim]) -> str:
    return json.dumps([{"claim": one.name, "holds": one.passed, "found": one.reason} for one in judged], indent=2)
