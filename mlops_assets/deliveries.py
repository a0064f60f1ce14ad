"""New data for a source: told by whoever delivered it, so that its run starts at once and nobody waits for a poll.

The run materializes the partition of the source; what reads it follows by its automation conditions, if the rows are
others than before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

import dagster as dg

from mlops_assets.catalog import Catalog, UnknownDeclarationError, asset_key
from mlops_assets.declarations import Source
from resources.events import Event, Inbox, push


class UndeliverableError(ValueError):
    """Nothing could be materialized for what was told."""

    @classmethod
    def computed(cls, table: str, reads: Collection[str]) -> Self:
        return cls(
            f"Table {table!r} is computed, not delivered (from: {', '.join(reads) or 'nothing'}). "
            "Tell of new data of its sources; it follows by itself."
        )

    @classmethod
    def partition(cls, table: str, asked: str | None, partitions: dg.PartitionsDefinition[str] | None) -> Self:
        if partitions is None:
            return cls(f"Source {table!r} has no partitions, and {asked!r} was given. Leave it out.")
        first, last = partitions.get_first_partition_key(), partitions.get_last_partition_key()
        asked_for = f"no partition {asked!r}" if asked else "partitions, and none was given"
        return cls(f"Source {table!r} has {asked_for} (known: {first} to {last}). Give one of them.")


def deliver(catalog: Catalog, table: str, partition: str | None = None, delivery: str | None = None) -> str | None:
    """Start the run for new data; its id, or None where it is left to the sensor `events`.

    A `delivery` that was told before starts none, for ever; its run's id is returned. Without one, news of a partition
    that come before the run of the last ones began are the same news. Raises UnknownDeclarationError,
    UndeliverableError.
    """
    event = _event(_source(catalog, table), partition, delivery)
    return push(event if delivery else Inbox().news(event))


def _source(catalog: Catalog, name: str) -> Source:
    if name not in catalog.tables:
        raise UnknownDeclarationError.of("table", name, catalog.tables)
    table = catalog.tables[name]
    if not isinstance(table, Source):
        raise UndeliverableError.computed(name, [read.id for _, read in catalog.inputs(table)])
    return table


def _event(source: Source, partition: str | None, delivery: str | None) -> Event:
    known = source.partitions
    fits = (partition is None) if known is None else bool(partition) and known.has_partition_key(str(partition))
    if not fits:
        raise UndeliverableError.partition(source.id, partition, known)
    subject = f"{source.id}[{partition}]" if partition else source.id
    return Event(
        f"{subject}:{delivery}" if delivery else "",
        "data",
        assets=(asset_key(source).to_user_string(),),
        partition=partition,
        tags={"team": source.team},
        subject=subject,
    )
