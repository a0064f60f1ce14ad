"""The year in one picture: the metric of each way of working, whose version answered, drift, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.year.rivals import Fared

if TYPE_CHECKING:
    from mlops_assets.year.verdict import Year

COLOURS = {"the closed loop": "#1b6ca8", "never again": "#b8b8b8", "every Monday": "#d98032"}
MARKS = {"retrain": ("v", "#1b6ca8", "retraining asked for"), "broken pipeline": ("X", "#c0392b", "broken pipeline")}
DAY = timedelta(days=1)


def draw(year: Year, results: Sequence[Fared], path: Path) -> Path:
    """Write the picture as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(14, 8), sharex=True, height_ratios=[3, 1.3])
    _metrics(top, year, results)
    _champions(top, year)
    _drift(bottom, year)
    _decisions(bottom, year)
    for axes in (top, bottom):
        _incidents(axes, year)
        axes.spines[["top", "right"]].set_visible(False)
    top.set_title(f"{year.model.id}: {len(year.days)} days of 2013 under Dagster's daemons", loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _metrics(axes: Any, year: Year, results: Sequence[Fared]) -> None:
    for one in results:
        weeks = [date.fromisoformat(week) + DAY * 3 for week in one.by_week]
        wide = 2.4 if one.way == "the closed loop" else 1.4
        label = f"{one.way}: {one.metric:.4f} on {one.flights:,} flights, {one.trainings} trainings"
        axes.plot(weeks, list(one.by_week.values()), color=COLOURS[one.way], linewidth=wide, label=label)
    axes.set_ylabel(f"{year.model.gate.metric} of a week's flights")
    if results:
        axes.legend(loc="lower left", framealpha=0.85, edgecolor="none", bbox_to_anchor=(0, 0.04))


def _champions(axes: Any, year: Year) -> None:
    """A band for the days of each champion."""
    for number, (version, first, last) in enumerate(reigns(year)):
        axes.axvspan(first, last + DAY, color="#1b6ca8", alpha=0.05 if number % 2 else 0.12, linewidth=0)
        axes.text(first, 1.0, f" v{version}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)


def reigns(year: Year) -> Iterator[tuple[str, date, date]]:
    """Each champion, the first and the last day of its turn."""
    for version, days in groupby(year.days, key=lambda one: one.champion):
        turn = list(days)
        yield version, date.fromisoformat(turn[0].day), date.fromisoformat(turn[-1].day)


def _drift(axes: Any, year: Year) -> None:
    told = [(one.day, one.reports.get("drift_report", {}).get("drifted_share")) for one in year.days]
    known = [(date.fromisoformat(day), share) for day, share in told if share is not None]
    if known:
        axes.fill_between(
            *zip(*known, strict=True), step="mid", color="#888888", alpha=0.5, label="inputs that drifted"
        )
    axes.axhline(year.model.monitor.drifted_share, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1.5)  # the legend has a row of its own
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("share of inputs")


def _decisions(axes: Any, year: Year) -> None:
    from mlops_assets.year.verdict import decided

    for outcome, (mark, colour, label) in MARKS.items():
        days = [one.day for one in decided(year, "retrain", outcome) if one.day]
        axes.scatter(days, [1.1] * len(days), marker=mark, color=colour, label=label, zorder=3)
    axes.legend(loc="upper left", ncols=3, frameon=False, fontsize=8)


def _incidents(axes: Any, year: Year) -> None:
    plan = year.incidents
    axes.axvspan(plan.outage, plan.back, color="#c0392b", alpha=0.15, linewidth=0)
    told = [(plan.duplicate, "duplicate"), (plan.correction, "correction"), (_bad_release(year), "bad release")]
    for day, name in [(plan.outage, "outage"), *told]:
        axes.axvline(datetime.combine(day, datetime.min.time()), color="#c0392b", linewidth=0.7, linestyle=":")
        axes.text(day, 0.01, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8, color="#c0392b")


def _bad_release(year: Year) -> date:
    happened = [one.day for one in year.days if any("bad release" in note for note in one.notes)]
    return date.fromisoformat(happened[0]) if happened else year.incidents.bad_release
