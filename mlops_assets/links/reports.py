"""What the reports of a day share: the trailing window of answers, the release it is held against, and its sound days.

A day on which the data pipeline was broken says nothing about the world or the model: its answers are left out of what
drift and performance are judged by, and each report says so. What broke is the quality report's to tell.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import PREDICTION, ModelPipeline
from resources.bentos import BentoStore, UnknownBentoError
from resources.environment import DEFAULT_REPORTS_URL, REPORTS_URL, home

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.monitoring.causes import Cause
    from mlops_assets.monitoring.drift import DriftResult
    from mlops_assets.monitoring.quality import Asked, Figures
    from mlops_assets.monitoring.usual import Usual


NOTHING_TO_JUDGE: Mapping[str, Any] = {"rows": 0, "verdict": "not enough rows", "causes": []}
DAY = timedelta(days=1)


def nothing_to_judge(check: str) -> Claim:
    """What a check says of a window without answers: nothing."""
    return Claim(check, True, "No answers in the window", blocking=False, numbers=NOTHING_TO_JUDGE)


def trailing(model: ModelPipeline, at_least: int = 1) -> dg.TimeWindowPartitionMapping:
    """The days of the monitoring window, or `at_least` so many, up to and including the report's own day."""
    days = max(ceil(model.monitor.window / DAY), at_least)
    return dg.TimeWindowPartitionMapping(start_offset=1 - days, allow_nonexistent_upstream_partitions=True)


def judged_release(answers: "pl.DataFrame") -> str | None:
    """The release that was champion at the end of the window: what the window is judged as."""
    import polars as pl

    champions = answers.filter(pl.col("variant") == "champion").sort("at", "seq")
    return None if champions.is_empty() else str(champions["release"][-1])


@dataclass(frozen=True)
class Window:
    """The answers up to the end of `day`, and the bundle of the release that they are judged as."""

    model: ModelPipeline
    bentos: BentoStore
    answers: "pl.DataFrame"
    release: str
    day: date

    @classmethod
    def of(cls, model: ModelPipeline, bentos: BentoStore, answers: "pl.DataFrame", day: datetime) -> "Window | None":
        """None where no champion answered. Raises UnknownBentoError where its Bento is gone."""
        release = judged_release(answers)
        if release is None:
            return None
        bentos.path(release)
        return cls(model, bentos, answers, release, day.date())

    @cached_property
    def baseline(self) -> "pl.DataFrame":
        """What the release was trained on; a feature declared since has nothing to be compared with yet."""
        import polars as pl

        rows = pl.read_parquet(self._bundle / "baseline.parquet")
        return rows.select(name for name in (*self.model.inputs, PREDICTION) if name in rows.columns)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return self._read(self.release, "manifest.json")

    @cached_property
    def usual(self) -> "Usual":
        from mlops_assets.monitoring.usual import Usual

        return Usual.read(self._bundle)

    @cached_property
    def asked(self) -> "Asked":
        """What its answers should look like."""
        from mlops_assets.monitoring.quality import Asked

        fields, baseline, usual = self.model.input_fields, self.baseline, self.usual.null_share
        nulls = {name: baseline[name].null_count() / max(baseline.height, 1) for name in fields if name in baseline}
        columns = self._read(self.release, "schema.json")["columns"]
        return Asked(
            fields,
            {column["name"]: column["categories"] for column in columns if column["categories"]},
            {item.view.id: item.view.ttl.total_seconds() if item.view.ttl else None for item in self.model.selections},
            {name: max(share, usual.get(name, 0.0)) for name, share in nulls.items()},
            self._reads,
        )

    @cached_property
    def days(self) -> "list[Figures]":
        """Each day from the first with answers on, the report's own the last, in numbers."""
        import polars as pl

        from mlops_assets.monitoring.quality import figures

        by_day = self.answers.with_columns(_day=pl.col("at").dt.date()).partition_by("_day", as_dict=True)
        rows = {key[0]: some for key, some in by_day.items()}
        first = min([*rows, self.day])
        days = [first + number * DAY for number in range((self.day - first).days + 1)]
        return [figures(day, rows.get(day, self.answers.clear()), self.asked) for day in days]

    @cached_property
    def spoilt(self) -> "dict[date, Cause]":
        """The days whose features were not what they should be, and the first cause of each."""
        from mlops_assets.monitoring.quality import judged

        found = {}
        for place, today in enumerate(self.days):
            causes = judged(today, self.days[:place], self.asked, self.model.monitor)
            if spoiling := [cause for cause in causes if cause.spoils]:
                found[today.day] = spoiling[0]
        return found

    @cached_property
    def sound(self) -> "pl.DataFrame":
        """The answers of the other days."""
        import polars as pl

        return self.answers.filter(~pl.col("at").dt.date().is_in(list(self.spoilt)))

    @property
    def left_out(self) -> int:
        return self.answers.height - self.sound.height

    @cached_property
    def pipeline(self) -> "list[Cause]":
        """What a report says of the answers that it leaves out."""
        from mlops_assets.monitoring.causes import Cause

        if not self.spoilt:
            return []
        days, why = ", ".join(map(str, self.spoilt)), list(self.spoilt.values())[-1]
        return [Cause("pipeline", "left out", f"{self.left_out} answers of {days} are left out: {why.said}")]

    @cached_property
    def drift(self) -> "DriftResult":
        """Of the sound answers against the baseline."""
        from mlops_assets.monitoring.drift import drift

        monitor = self.model.monitor
        return drift(
            self.baseline,
            self.sound,
            limit=monitor.psi,
            share_limit=monitor.drifted_share,
            min_rows=monitor.min_rows,
            usual=self.usual.psi,
            classes=self.model.task == "multiclass",
        )

    def drawn(self, rows: "pl.DataFrame") -> "pl.DataFrame":
        """The rows as a page draws them: a column for each place of a short array, a class as a word."""
        from mlops_assets.monitoring.drift import as_classes
        from mlops_assets.monitoring.usual import numbered

        if self.model.task == "multiclass":
            rows = as_classes(rows)
        return numbered(rows, {name: field.size for name, field in self.model.input_fields.items() if field.size})

    @property
    def _bundle(self) -> Path:
        return self.bentos.path(self.release)

    @cached_property
    def _reads(self) -> dict[str, Sequence[str]]:
        """The inputs of each release that answered; one whose Bento is gone is taken to read what this one does."""
        found = {}
        for release in self.answers["release"].unique():
            try:
                found[release] = self._read(release, "plan.json")["inputs"]
            except UnknownBentoError:
                continue
        return found

    def _read(self, release: str, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.bentos.path(release) / name).read_bytes())
        return loaded


def report_path(model: ModelPipeline, day: datetime, name: str) -> Path:
    """Where people find the page: `reports/<team>/<model>/<day>/<name>.html` under MLOPS_HOME."""
    return home() / "reports" / model.team / model.name / f"{day:%Y-%m-%d}" / f"{name}.html"


def link_to(page: Path) -> dict[str, Any]:
    """Metadata that leads to a page: its file, and its address while the platform is up."""
    if not page.exists():
        return {}
    address = f"{os.environ.get(REPORTS_URL, DEFAULT_REPORTS_URL)}/{page.relative_to(home() / 'reports')}"
    return {"report": dg.MetadataValue.url(address), "report_file": dg.MetadataValue.path(str(page))}
