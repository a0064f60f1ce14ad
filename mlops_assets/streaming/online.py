"""The online rows of the views that a batch changed: the newest per key, once its time has come.

A row of a later time than the newest event is of a window that is still open; it is published by the batch that
brings an event of that time. An older row never replaces a newer one: the online store compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets import feast_objects
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView
from mlops_assets.feast_objects import feast_name
from resources.feast import FeastResource
from resources.lake import Lake

if TYPE_CHECKING:
    import polars as pl


def register(feast: FeastResource, catalog: Catalog, lake: Lake) -> None:
    """Let Feast know every view; harmless when it does."""
    feast.apply(feast_objects.compile(catalog.views, catalog.models.values(), lake))


def as_of(newest_event: datetime) -> datetime:
    """Up to when rows are published: the newest event, which may be announced for a time that has not come."""
    return min(newest_event, datetime.now(UTC))


def publish(feast: FeastResource, lake: Lake, view: FeatureView, changed: list[str], moment: datetime) -> int:
    """Publish the rows of `moment`; returns how many keys of the view are new or newer there."""
    rows = candidates(lake, view, changed, moment)
    return feast.write_online(feast_name(view), rows).written if rows.height else 0


def candidates(lake: Lake, view: FeatureView, changed: list[str], moment: datetime) -> pl.DataFrame:
    """The rows until `moment` that an earlier batch may not have published.

    They lie in what changed, in the partition before (its last rows may have waited for this event), and
    around `moment`. Every older one was offered before.
    """
    import polars as pl

    rows = lake.scan(asset_key(view), _near(lake, view, changed, moment))
    return rows.filter(pl.col(EVENT_TIMESTAMP) <= moment).collect()


def _near(lake: Lake, view: FeatureView, changed: list[str], moment: datetime) -> list[str] | None:
    definition = view.partitions
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return None
    published = lake.partitions(asset_key(view))
    now = definition.get_partition_key_for_timestamp(moment.timestamp())
    wanted = {*changed, now, *_before(published, min(changed)), *_before(published, now)}
    return [name for name in published if name in wanted]


def _before(published: list[str], name: str) -> list[str]:
    """The published partition before `name`, if there is one."""
    return [each for each in published if each < name][-1:]


def online_views(views: list[FeatureView], changed: Mapping[str, list[str]]) -> list[FeatureView]:
    """Those of `views` that have an online face and that the batch changed."""
    return [view for view in views if view.online and changed.get(view.id)]
