"""From a partition of a table forward: the training sets, versions, Bentos, releases and answers that used its rows.

The other way round than a receipt, and by the same rules: what is named here, a receipt leads back from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Self

from mlops_assets.catalog import Table, asset_key
from mlops_assets.declarations import FeatureView, Labels, ModelPipeline
from mlops_assets.links import spec
from mlops_assets.records import Document, Records, link_key
from mlops_assets.used_rows import WHOLE, read_tables, used, window_of

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = 5
KNOWN = ("request_id", "at", "release", "version", "variant", "event_times", "writer", "seq")


class UnknownPartitionError(LookupError):
    """A partition was asked for that a table cannot have."""

    @classmethod
    def of(cls, table: str, asked: str, known: Sequence[str]) -> Self:
        some = f"{known[0]} to {known[-1]}" if known else "none yet"
        return cls(f"{table} has no partition {asked!r} (published: {some}). Name one as the asset's page does.")


def touched_by(table: Table, partition: str, records: Records) -> Document:
    """Everything that used rows of the partition, by model, and which partitions of other tables are made from it.

    A source is read by no model: what used its rows is what used those that it feeds. Raises UnknownPartitionError.
    """
    _check(table, partition, records)
    records = records.anew()
    told: Document = {"table": table.id, "partition": partition}
    told["feeds"] = records.ask("the asset graph", feeds, table, partition, records) or {}
    models = [
        (model, read[table.id]) for model in records.catalog.models.values() if table.id in (read := read_tables(model))
    ]
    told["models"] = [_of_model(model, read, partition, records) for model, read in models]
    return told | {"remarks": list(records.problems)}


def feeds(table: Table, partition: str, records: Records) -> dict[str, list[str]]:
    """The published partitions of other tables that are computed from this one, as Dagster maps them."""
    from mlops_assets.definitions import defs

    graph, key = defs.resolve_asset_graph(), asset_key(table)
    tables = {asset_key(other): other for other in records.catalog.tables.values()}
    found = {}
    for child in sorted(graph.get(key).child_keys & tables.keys()):
        mapping, into = graph.get_partition_mapping(child, key), tables[child].partitions
        published = records.lake.partitions(child)
        if into is None:
            found[tables[child].id] = [WHOLE]
        elif table.partitions is None:
            found[tables[child].id] = published
        else:
            subset = table.partitions.subset_with_partition_keys([partition])
            reached = mapping.get_downstream_partitions_for_partitions(subset, table.partitions, into)
            found[tables[child].id] = sorted({*reached.get_partition_keys()} & {*published})
    return {name: partitions for name, partitions in found.items() if partitions}


def _check(table: Table, partition: str, records: Records) -> None:
    definition = table.partitions
    if definition is None and partition == WHOLE:
        return
    if definition is None or not definition.has_partition_key(partition):
        raise UnknownPartitionError.of(table.id, partition, records.lake.partitions(asset_key(table)))


def _of_model(model: ModelPipeline, table: FeatureView | Labels, partition: str, records: Records) -> Document:
    return {
        "model": model.id,
        "training_sets": list(_training_sets(model, table, partition, records)),
        "answers": _answers(model, table, partition, records),
    }


# -- training


def _training_sets(
    model: ModelPipeline, table: FeatureView | Labels, partition: str, records: Records
) -> Iterator[Document]:
    """Those of the lake with a row that used the partition, and what was made of each."""
    released = _releases(model, records)
    bentos = {tag: records.manifest(tag) for tag in records.bentos.list(model.id)}
    for cutoff in records.lake.partitions(spec.link_key(model, "training_set")):
        rows = records.ask("the training set's rows", used, model, table, cutoff, records.lake, partition) or {}
        if rows:
            events = records.events(link_key(model.id, "candidate"), [cutoff], 100)
            tags = [tag for tag, manifest in bentos.items() if manifest.get("cutoff") == cutoff]
            yield {
                "cutoff": cutoff,
                "rows": sum(rows.values()),
                "versions": sorted({str(event["metadata"]["version"]) for event in events}, key=int),
                "bentos": tags,
                "releases": [one for one in released if one["release"] in tags],
            }


def _releases(model: ModelPipeline, records: Records) -> list[Document]:
    """Each Bento that ever had a part in the traffic, and since which revision."""
    first: dict[str, Document] = {}
    for change in records.ask("the release history", records.releases.history, model.id) or []:
        for variant in change.after:
            told = {
                "release": variant.release,
                "version": variant.version,
                "revision": change.revision,
                "at": change.at,
            }
            first.setdefault(variant.release, told)
    return list(first.values())


# -- answers


def _answers(model: ModelPipeline, table: FeatureView | Labels, partition: str, records: Records) -> list[Document]:
    """Logged answers that used a row of the partition: how many a day and release, and some of their ids."""
    import polars as pl

    if isinstance(table, Labels):  # an answer is given before its label is known
        return []
    if table in [item.view.stand_in for item in model.selections]:
        records.tell(f"the prediction log: which row of {table.id} stood in for a missing one is not logged")
        return []
    days = [
        rows
        for day in _days(model, table, partition, records)
        for rows in _used_on(model, table, partition, day, records)
    ]
    if not days:
        return []
    told = pl.concat(days).unique(["day", "writer", "seq", "variant"]).sort("at", "writer", "seq")
    counted = told.group_by("day", "release", "version", "variant", maintain_order=True).agg(
        answers=pl.len(), request_ids=pl.col("request_id").head(EXAMPLES)
    )
    return counted.to_dicts()


def _days(model: ModelPipeline, view: FeatureView, partition: str, records: Records) -> list[date]:
    """The days of answers on which a row of the partition could still be used."""
    logged = records.log.days(model.id)
    published = [date.fromisoformat(name[:10]) for name in records.lake.partitions(spec.link_key(model, "predictions"))]
    days, window = sorted({*logged, *published}), window_of(view, partition)
    if window is None:
        return days
    last = window.end + view.ttl if view.ttl else None
    return [day for day in days if window.start.date() <= day and (last is None or day <= last.date())]


def _used_on(
    model: ModelPipeline, view: FeatureView, partition: str, day: date, records: Records
) -> Iterator[pl.DataFrame]:
    """The answers of a day that used a row of the partition, from the log and from the published table."""
    import polars as pl

    window = window_of(view, partition)
    time = pl.col("event_times").str.json_decode(pl.Struct({view.id: pl.String()})).struct.field(view.id)
    moment = time.str.to_datetime(time_unit="us", time_zone="UTC", format="%Y-%m-%dT%H:%M:%S%.f%:z")
    inside = moment.is_between(window.start, window.end, closed="left") if window else moment.is_not_null()
    for rows in _told_on(model, day, records):
        mentioned = rows.filter(pl.col("event_times").str.contains(view.id, literal=True))
        yield mentioned.filter(inside).with_columns(pl.lit(day.isoformat()).alias("day"))


def _told_on(model: ModelPipeline, day: date, records: Records) -> Iterator[pl.DataFrame]:
    for rows in records.log.chunks(model.id, day, {}):
        yield rows.select(KNOWN)
    key = spec.link_key(model, "predictions")
    if records.lake.exists(key, day.isoformat()):
        yield from records.lake.scan(key, [day.isoformat()]).select(KNOWN).collect_batches()
