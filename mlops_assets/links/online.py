"""The online face of a feature view: the newest row per key, where the endpoint and any Feast client read it.

Written in Feast's own format through Feast, and beside it packed for the endpoint. A row enters when its
event time has come and leaves, for readers, when its ttl is over.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets import feast_objects
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView
from mlops_assets.feast_objects import feast_name
from mlops_assets.links import spec
from resources.feast import FeastResource, Progress
from resources.lake import Lake

if TYPE_CHECKING:
    import polars as pl

CLAIMS = {"newest_row_present": True, "within_ttl": False}
PROMISES = {
    "newest_row_present": "The online store answers with the newest offline row of sampled keys, through plain Feast",
    "within_ttl": "The newest row is young enough to be served",
}


class AsOf(dg.Config):
    """`as_of`: publish the rows of that moment (ISO time with a zone); by default everything there is."""

    as_of: str | None = None

    def moment(self) -> datetime | None:
        if self.as_of is None:
            return None
        moment = datetime.fromisoformat(self.as_of)
        if moment.tzinfo is None:
            raise dg.Failure(
                f"as_of is {self.as_of!r}, a time without a zone. Write it with one, e.g. 2013-04-01T00:00:00+00:00.",
                allow_retries=False,
            )
        return moment.astimezone(UTC)


def online_key(view: FeatureView) -> dg.AssetKey:
    return dg.AssetKey([view.team, "online", view.name])


def newest_rows(frame: "pl.LazyFrame", view: FeatureView, as_of: datetime | None) -> "pl.DataFrame":
    """The newest row per key at `as_of`, if its ttl is not over by then."""
    import polars as pl

    moment = pl.col(EVENT_TIMESTAMP)
    if as_of is not None:
        frame = frame.filter(moment <= as_of)
        frame = frame if view.ttl is None else frame.filter(moment >= as_of - view.ttl)
    ordered = frame.sort(EVENT_TIMESTAMP)
    if not view.join_keys:  # one row for everyone
        return ordered.tail(1).collect()
    return ordered.unique(view.join_keys, keep="last", maintain_order=True).collect()


def recent(lake: Lake, view: FeatureView, as_of: datetime | None) -> "pl.LazyFrame":
    """The published rows that can still matter at `as_of`; reads only those partitions, of which one must exist."""
    key = asset_key(view)
    partitions = lake.partitions(key)
    if as_of is None or view.ttl is None or not partitions:
        return lake.scan(key)
    first, last = f"{as_of - view.ttl - timedelta(days=1):%Y-%m-%d}", f"{as_of:%Y-%m-%d}"
    return lake.scan(key, [name for name in partitions if first <= name <= last] or [first, last])


def publish_online(
    feast: FeastResource, lake: Lake, view: FeatureView, as_of: datetime | None, progress: Progress | None = None
) -> "pl.DataFrame":
    """Bring the online stores to `as_of`; what the asset and the replay of a stream both call.

    `progress` is told the keys done and the keys in all, chunk by chunk.
    """
    rows = newest_rows(recent(lake, view, as_of), view, as_of)
    feast.write_online(feast_name(view), rows, progress=progress)
    return rows


def online_asset(view: FeatureView, catalog: Catalog) -> dg.AssetsDefinition:
    key = online_key(view)

    @dg.asset(
        key=key,
        deps=[asset_key(view)],
        description=f"{_newest(view)} of {view.title}, for endpoints and Feast clients.",
        group_name=f"{view.team}_online",
        owners=spec.owners(view.owners, view.team),
        kinds={"feast"},
        tags={"team": view.team, "stage": "online"},
        code_version=view.code_version,
        metadata={"dagster/column_schema": spec.column_schema(view.columns), "feast/feature_view": feast_name(view)},
        freshness_policy=spec.DAILY_FRESHNESS,
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(key, CLAIMS, PROMISES),
    )
    def online(context: dg.AssetExecutionContext, config: AsOf, feast: FeastResource, lake: Lake) -> Iterator[Any]:
        as_of = config.moment()
        feast.apply(feast_objects.compile(catalog.views, catalog.models.values(), lake))
        rows = publish_online(feast, lake, view, as_of, partial(context.log.info, "%d of %d keys published"))
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows.height,
                "newest": str(rows[EVENT_TIMESTAMP].max()),
                "as_of": str(as_of),
            },
            data_version=spec.data_version(rows),
        )
        yield spec.check_result(key, newest_row_present(feast, view, rows))
        yield spec.check_result(key, within_ttl(view, rows, as_of))

    return online


def _newest(view: FeatureView) -> str:
    return f"The newest row per {', '.join(view.join_keys)}" if view.join_keys else "The newest row"


def newest_row_present(feast: FeastResource, view: FeatureView, rows: "pl.DataFrame") -> Claim:
    """A few keys, read back through plain Feast, answer with what was published."""
    sample = rows.head(20)
    if sample.is_empty():
        return Claim("newest_row_present", True, "Nothing to publish")
    keys = sample.select(view.join_keys).rows() if view.join_keys else [()]
    stored = feast.read_online(feast_name(view), keys, list(view.schema))
    wrong = [
        (row[name], answer[name])
        for row, answer in zip(sample.to_dicts(), stored, strict=True)
        for name in view.schema
        if row[name] != answer[name]
    ]
    return Claim(
        "newest_row_present",
        not wrong,
        f"{len(wrong)} values differ from what was published{f', e.g. {wrong[:3]}' if wrong else ''}",
        numbers={"keys_read_back": sample.height},
    )


def within_ttl(view: FeatureView, rows: "pl.DataFrame", as_of: datetime | None) -> Claim:
    """The newest row is served for a while yet; an online view without rows serves nothing but nulls."""
    newest: Any = rows[EVENT_TIMESTAMP].max()
    if newest is None:
        return Claim("within_ttl", False, f"{view.title} has no row to serve at {as_of}", blocking=False)
    fresh = as_of is None or view.ttl is None or newest >= as_of - view.ttl
    return Claim("within_ttl", fresh, f"The newest row is of {newest}, the ttl {view.ttl}", blocking=False)
