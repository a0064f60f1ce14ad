"""Fallbacks: how often a view had nothing to say of a key, and what was used instead, a cold start or nulls.

Counted by view, in a training set and in a day's answers alike. A rate that rises means new keys, or a view that is
not published any more; the answers go on, so nothing else would say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline, Monitor, StoredSelection

if TYPE_CHECKING:
    import polars as pl

CHECK = "fallback_rate"
PROMISE = "No view was without a usable row for most answers"
NULLS, COLD = "nulls", "cold_start"

Shares = Mapping[str, Mapping[str, float]]


def in_training(model: ModelPipeline, rows: pl.DataFrame) -> Shares:
    """By view, the share of a training set's rows that hold a cold start, and that hold nothing but nulls."""
    if rows.is_empty():
        return {}
    return {
        item.view.name: _in_training(item, rows) for item in model.selections if set(item.features) & set(rows.columns)
    }


def _in_training(item: StoredSelection, rows: pl.DataFrame) -> dict[str, float]:
    import polars as pl

    from mlops_assets.links.training_set import cold_start_used

    read = [name for name in item.features if name in rows.columns]  # on-demand views may read others
    nothing, cold = pl.all_horizontal(pl.col(read).is_null()), pl.lit(False)
    if item.view.cold_start:
        cold = pl.col(cold_start_used(item.view)) & ~nothing
    nulls, stood_in = rows.select(nothing.mean(), cold.mean().alias(COLD)).row(0)
    return {NULLS: nulls, COLD: stood_in}


def unaided(model: ModelPipeline, rows: pl.DataFrame) -> pl.DataFrame:
    """A training set's rows without their cold starts: with nulls where a view itself had nothing to say."""
    import polars as pl

    from mlops_assets.links.training_set import cold_start_used

    known = {
        name: pl.when(~pl.col(cold_start_used(item.view))).then(name)
        for item in model.selections
        for name in item.features
        if item.view.cold_start and name in rows.columns
    }
    return rows.with_columns(**known)


def in_answers(model: ModelPipeline, rows: pl.DataFrame) -> Shares:
    """By view, the share of the answers whose receipt says that nulls, or its cold start, were used."""
    import polars as pl

    if rows.is_empty():
        return {}
    told = pl.List(pl.Struct({"view": pl.String, "used": pl.String}))
    used = rows.select(pl.col("fallbacks").str.json_decode(told)).explode("fallbacks").unnest("fallbacks")
    used = used.with_columns(pl.col("used").fill_null("nulls"))  # what was logged before there were cold starts
    counted = {(view, what): count for view, what, count in used.group_by("view", "used").len().iter_rows()}
    words = {NULLS: "nulls", COLD: "cold start"}
    return {
        item.view.name: {name: counted.get((item.view.id, word), 0) / rows.height for name, word in words.items()}
        for item in model.selections
    }


def numbers(shares: Shares) -> dict[str, float]:
    """As metadata, which Dagster plots over the partitions."""
    return {f"fallback_share/{view}/{what}": round(s, 6) for view, found in shares.items() for what, s in found.items()}


def seldom(monitor: Monitor, shares: Shares, rows: int) -> Claim:
    """No view fell back in more answers than the monitor allows; of too few answers nothing is claimed."""
    if rows < monitor.min_rows:
        return Claim(CHECK, True, f"{rows} answers, fewer than {monitor.min_rows}: nothing to judge", blocking=False)
    rates = {view: sum(found.values()) for view, found in shares.items()}
    over = {view: rate for view, rate in rates.items() if rate > monitor.fallback_share}
    said = "; ".join(
        f"{view} had no usable row for {rate:.0%} of {rows} answers ({shares[view][COLD]:.0%} by its cold start)"
        for view, rate in over.items()
    )
    return Claim(
        CHECK,
        not over,
        said
        or f"every view had a usable row for enough of {rows} answers; allowed without: {monitor.fallback_share:.0%}",
        blocking=False,
        numbers={"limit": monitor.fallback_share, "worst": max(rates.values(), default=0.0)},
    )
