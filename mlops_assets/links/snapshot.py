"""A snapshot of a view as it is held online: the newest row per key, with its event time, in the lake.

One row is what an endpoint would read for that key. Whoever audits what was served, or compares a day with the next,
reads it; and `rebuild_online` shows that the online store holds nothing of its own: emptied and filled from the
offline rows alone, it is equal. No clock enters: a snapshot is as of the newest event that it holds.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView
from mlops_assets.feast_objects import feast_name
from mlops_assets.links import spec
from mlops_assets.links.online import newest_rows, online_key, recent
from resources.feast import FeastResource
from resources.lake import Lake

if TYPE_CHECKING:
    import polars as pl

CLAIMS = {"formats_agree": False}
PROMISES = {"formats_agree": "Feast's own format online says the same as the rows that the endpoint reads"}
ROWS_AT_ONCE, EXAMPLES = 50_000, 3
TIME = "UnixTimestamp"


def snapshot_key(view: FeatureView) -> dg.AssetKey:
    return dg.AssetKey([view.team, "snapshot", view.name])


def held_online(feast: FeastResource, view: FeatureView) -> "pl.DataFrame":
    """The rows the online store holds of a view, in the order of its keys; its columns are those offline."""
    import polars as pl

    rows = feast.packed().rows(feast_name(view))
    frames = [_frame([], view)]
    while some := list(islice(rows, ROWS_AT_ONCE)):
        frames.append(_frame(some, view))
    # Redis may show a key twice that was written while it was read: the later row is the one it holds.
    ordered = pl.concat(frames).sort([*view.join_keys, EVENT_TIMESTAMP])
    return ordered.unique(view.join_keys, keep="last", maintain_order=True) if view.join_keys else ordered.tail(1)


def _frame(rows: Iterable[tuple[tuple[Any, ...], int, dict[str, Any]]], view: FeatureView) -> "pl.DataFrame":
    import polars as pl

    schema = {name: pl.String() if field.dtype == TIME else field.polars for name, field in view.columns.items()}
    told = [
        {**dict(zip(view.join_keys, key, strict=True)), **features, EVENT_TIMESTAMP: event_ts}
        for key, event_ts, features in rows
    ]
    frame = pl.DataFrame(told, schema={**schema, EVENT_TIMESTAMP: pl.Int64()})
    moments = [name for name, field in view.columns.items() if field.dtype == TIME and name != EVENT_TIMESTAMP]
    return frame.with_columns(
        pl.from_epoch(EVENT_TIMESTAMP, time_unit="us").dt.replace_time_zone("UTC"),
        pl.col(moments).str.to_datetime(time_unit="us", time_zone="UTC"),
    )


def rebuild_online(feast: FeastResource, lake: Lake, view: FeatureView, as_of: datetime | None) -> "pl.DataFrame":
    """Empty the online store of a view and fill it from offline as of a moment; the rows it then holds.

    Readers find nothing meanwhile, so it is for a store that was lost or is in doubt. The rows are read first: where
    offline has none to give, nothing is emptied. Cut off, it is repeated, or `publish_online` goes on.
    """
    rows = newest_rows(recent(lake, view, as_of), view, as_of)
    feast.empty_online(feast_name(view))
    feast.write_online(feast_name(view), rows)
    return rows


def snapshot_asset(view: FeatureView) -> dg.AssetsDefinition:
    key = snapshot_key(view)

    @dg.asset(
        key=key,
        deps=[online_key(view)],
        description=f"The rows of {view.title} as the online store held them when this was last asked for.",
        group_name=f"{view.team}_snapshot",
        owners=spec.owners(view.owners, view.team),
        kinds={"parquet", "feast"},
        tags={"team": view.team, "stage": "snapshot"},
        code_version=view.code_version,
        metadata={"dagster/column_schema": spec.column_schema(view.columns), "feast/feature_view": feast_name(view)},
        check_specs=spec.check_specs(key, CLAIMS, PROMISES),
    )
    def snapshot(feast: FeastResource, lake: Lake) -> Iterator[Any]:
        rows = held_online(feast, view)
        path = lake.write(rows, key)
        metadata: dict[str, Any] = {
            "dagster/row_count": rows.height,
            "as_of": str(rows[EVENT_TIMESTAMP].max()),
            "path": dg.MetadataValue.path(str(path)),
        }
        yield dg.MaterializeResult(metadata=metadata, data_version=spec.data_version(rows))
        yield spec.check_result(key, formats_agree(feast, view, rows.height))

    return snapshot


def formats_agree(feast: FeastResource, view: FeatureView, keys: int) -> Claim:
    """Both formats are read whole; a difference means that somebody wrote past the store."""
    wrong = list(islice(feast.online_differences(feast_name(view)), EXAMPLES))
    told = "; ".join(f"{name} of {key}: {ours!r} packed, {feasts!r} in Feast's" for key, name, ours, feasts in wrong)
    reason = told or f"Both formats hold the same of {keys} keys"
    return Claim("formats_agree", not wrong, reason, blocking=False, numbers={"keys_compared": keys})
