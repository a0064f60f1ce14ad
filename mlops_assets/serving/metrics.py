"""What a serving process counts, for Prometheus; BentoML adds up the processes of one server under /metrics.

An answer adds to plain numbers of its own process (a microsecond); they go into Prometheus' metrics once a second
and when the process ends. One histogram observation through its client would cost as much as a prediction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mlops_assets.serving.answers import STAGES, Answers

PREFIX = "mlops_endpoint"
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
STAGE_BOUNDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0)


class _Counts(Histogram):
    """A histogram that takes what was counted elsewhere."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """As many observations in each bucket, the last for those above every bound, and the sum of all."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


REQUESTS = Counter(f"{PREFIX}_requests", "Requests by HTTP status", ["model", "status"])
ROWS = Counter(f"{PREFIX}_rows", "Rows answered", ["model", "release", "variant"])
LATENCY = _Counts(
    f"{PREFIX}_latency_seconds", "From a request's arrival to its answer", ["model", "release"], buckets=BOUNDS
)
STAGE = _Counts(
    f"{PREFIX}_stage_seconds", "A stage's part of an answer", ["model", "release", "stage"], buckets=STAGE_BOUNDS
)
FALLBACKS = Counter(f"{PREFIX}_fallbacks", "Rows without a row of a view", ["model", "release", "view", "reason"])
INSTEAD = Counter(f"{PREFIX}_answered_instead", "Rows answered for a failed challenger", ["model", "release"])
DEPTH = Gauge(f"{PREFIX}_queue_depth", "Requests taken and not yet answered", multiprocess_mode="livesum")
AGE = Gauge(
    f"{PREFIX}_model_age_seconds",
    "Time since the cutoff up to which the champion knows the world",
    ["model"],
    multiprocess_mode="livemax",
)
SLEEPS = Counter(f"{PREFIX}_sleeps", "Releases put to sleep for memory", ["model"])
WAKES = Counter(f"{PREFIX}_wakes", "Releases woken by a request", ["model"])
REFUSALS = Counter(f"{PREFIX}_refusals", "Releases that could not be served", ["model", "release"])
BREAKER_TRIPS = Counter(f"{PREFIX}_breaker_trips", "Canaries ended by the circuit breaker", ["model", "release"])
SHADOW_DROPPED = Counter(f"{PREFIX}_shadow_dropped", "Rows that a busy shadow did not answer", ["model", "release"])


class Tally:
    """Counts of one release in this process, since they were last told. Used by the event loop alone."""

    __slots__ = ("fallbacks", "instead", "latency", "rows", "seconds", "stage_seconds", "stages")

    def __init__(self) -> None:
        self.rows = 0
        self.instead = 0
        self.seconds = 0.0
        self.latency = [0] * (len(BOUNDS) + 1)
        self.stages = [[0] * (len(STAGE_BOUNDS) + 1) for _ in STAGES]
        self.stage_seconds = [0.0] * len(STAGES)
        self.fallbacks: dict[tuple[str, str], int] = {}

    def add(self, answers: Answers, seconds: float) -> None:
        self.rows += len(answers.predictions)
        self.seconds += seconds
        self.latency[bisect_left(BOUNDS, seconds)] += 1
        for place, spent in enumerate(answers.stages):
            self.stages[place][bisect_left(STAGE_BOUNDS, spent)] += 1
            self.stage_seconds[place] += spent
        for looked in answers.looked or ():
            for fallback in looked.fallbacks:
                why = (fallback.view, fallback.reason)
                self.fallbacks[why] = self.fallbacks.get(why, 0) + 1


class Metrics:
    """What this process counted and has not told yet."""

    def __init__(self) -> None:
        self._statuses: dict[tuple[str, int], int] = {}
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def status(self, model: str, status: int) -> None:
        """One request ended so."""
        asked = (model, status)
        self._statuses[asked] = self._statuses.get(asked, 0) + 1

    def answered(self, answers: Answers, seconds: float) -> None:
        """One release answered its part of a request, which took so long."""
        of = (answers.model, answers.variant.release, answers.variant.role)
        tally = self._tallies.get(of)
        if tally is None:
            tally = self._tallies[of] = Tally()
        tally.add(answers, seconds)
        if answers.instead_of is not None:
            INSTEAD.labels(answers.model, answers.instead_of).inc(len(answers.predictions))

    def tell(self, depth: int) -> None:
        """Hand everything counted so far to Prometheus."""
        DEPTH.set(depth)
        statuses, self._statuses = self._statuses, {}
        for (model, status), count in statuses.items():
            REQUESTS.labels(model, str(status)).inc(count)
        tallies, self._tallies = self._tallies, {}
        for (model, release, variant), tally in tallies.items():
            _tell(tally, model, release, variant)

    def ages(self, cutoffs: Mapping[str, datetime]) -> None:
        """How old the champion of each model is, by its cutoff."""
        now = datetime.now(UTC)
        for model, cutoff in cutoffs.items():
            AGE.labels(model).set((now - cutoff).total_seconds())


def _tell(tally: Tally, model: str, release: str, variant: str) -> None:
    ROWS.labels(model, release, variant).inc(tally.rows)
    latency: Any = LATENCY.labels(model, release)
    latency.add(tally.latency, tally.seconds)
    for name, counts, seconds in zip(STAGES, tally.stages, tally.stage_seconds, strict=True):
        stage: Any = STAGE.labels(model, release, name)
        stage.add(counts, seconds)
    for (view, reason), count in tally.fallbacks.items():
        FALLBACKS.labels(model, release, view, reason).inc(count)


def page() -> tuple[bytes, str]:
    """Prometheus' text and its content type, of this process alone."""
    return generate_latest(), CONTENT_TYPE_LATEST
