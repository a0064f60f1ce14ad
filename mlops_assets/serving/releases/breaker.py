"""The circuit breaker of a canary: ends it where the new release fails, or is slow, beyond what its record allows.

An answer costs an append; the thread that follows the records judges a few times a second. A verdict must hold
for the release and not for chance or for the machine: an error counts against the challenger only as far as the
champion fares better, and a bound is passed only when 999 of 1,000 such samples within it would look better.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, sqrt

from resources.release_record import Limits

SURE = 3.09  # standard deviations: 1 in 1,000 by chance; lower, and looking every 0.2 s would find a false alarm
FEWEST_FAILURES = 3  # below, it may be one caller who asks again and again
QUANTILE = 0.95
WINDOW = 2_000  # latest answers of a role whose latency counts: a canary of days is judged by its last minutes
WAITING = 16_384  # observations between two judgements; more are not needed, and memory stays bounded
LEAST_SECONDS = 0.001  # a p95 below it disturbs nobody, however many times the champion's it is


@dataclass(slots=True)
class _Seen:
    """What one role has answered since the canary began."""

    requests: int = 0
    failures: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, observed: Sequence[tuple[float, bool]]) -> None:
        self.requests += len(observed)
        for seconds, failed in observed:
            self.failures += failed
            if not failed:
                self.seconds.append(seconds)


class CanaryBreaker:
    """Watches one canary in one process; another canary, or another step of it, needs one of its own."""

    __slots__ = ("_limits", "_seen", "_waiting")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        roles = ("champion", "challenger")
        self._waiting: dict[str, deque[tuple[float, bool]]] = {role: deque(maxlen=WAITING) for role in roles}
        self._seen = {role: _Seen() for role in roles}

    def observe(self, role: str, seconds: float, failed: bool) -> None:
        """A request that `role` answered in so many seconds, or failed to. From any thread."""
        self._waiting[role].append((seconds, failed))

    def judge(self) -> str | None:
        """Why the canary must end, or None while nothing speaks against it. From one thread."""
        for role, waiting in self._waiting.items():
            self._seen[role].add([waiting.popleft() for _ in range(len(waiting))])
        return self._too_many_errors() or self._too_slow()

    def _too_many_errors(self) -> str | None:
        """At once after a few: the challenger's true share of errors is surely over the bound and the champion's."""
        champion, challenger, limit = self._seen["champion"], self._seen["challenger"], self._limits.max_error_share
        if challenger.failures < FEWEST_FAILURES:
            return None
        at_least = lowest_share(challenger.failures, challenger.requests)
        if at_least <= max(limit, highest_share(champion.failures, champion.requests) if champion.failures else 0):
            return None
        return (
            f"{challenger.failures} of {challenger.requests} requests of the challenger failed "
            f"(allowed: {limit:.1%}; champion: {champion.failures} of {champion.requests})"
        )

    def _too_slow(self) -> str | None:
        champion, challenger, limits = self._seen["champion"], self._seen["challenger"], self._limits
        if min(len(champion.seconds), len(challenger.seconds)) < limits.min_requests:
            return None
        slow, fair = quantile(challenger.seconds, -SURE), quantile(champion.seconds, SURE)
        if slow <= max(fair * limits.max_latency_ratio, LEAST_SECONDS):
            return None
        return (
            f"the challenger's p95 latency is {quantile(challenger.seconds) * 1000:.1f} ms, "
            f"{quantile(challenger.seconds) / quantile(champion.seconds):.1f} times the champion's "
            f"(allowed: {limits.max_latency_ratio:g} times, after {len(challenger.seconds)} requests)"
        )


def lowest_share(failures: int, requests: int) -> float:
    """The lower end of Wilson's interval for the true share of failures."""
    share, spread = _wilson(failures, requests)
    return max(share - spread, 0.0)


def highest_share(failures: int, requests: int) -> float:
    """The upper end of the same."""
    share, spread = _wilson(failures, requests)
    return min(share + spread, 1.0)


def _wilson(failures: int, requests: int) -> tuple[float, float]:
    """Its middle and half its width; unlike the normal interval it is right for few requests and for none failed."""
    share, z2 = failures / requests, SURE * SURE
    widened = 1 + z2 / requests
    half = SURE * sqrt(share * (1 - share) / requests + z2 / (4 * requests * requests))
    return (share + z2 / (2 * requests)) / widened, half / widened


def quantile(seconds: Sequence[float], deviations: float = 0.0) -> float:
    """The 95th percentile, or where it surely lies below or above: its rank varies as a binomial count does."""
    size, ranked = len(seconds), sorted(seconds)
    rank = size * QUANTILE + deviations * sqrt(size * QUANTILE * (1 - QUANTILE))
    place = (ceil(rank) if deviations >= 0 else floor(rank)) - 1
    return ranked[min(max(place, 0), size - 1)]
