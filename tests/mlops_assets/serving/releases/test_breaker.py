"""The circuit breaker: soon where a release is broken, never by chance, and for what is the challenger's own fault."""

from __future__ import annotations

import random
import statistics
import timeit

import pytest

from mlops_assets.serving.releases.breaker import CanaryBreaker, highest_share, lowest_share, quantile
from resources.release_record import Limits

LIMITS = Limits(max_error_share=0.01, max_latency_ratio=3.0, min_requests=50)


def ask(
    breaker: CanaryBreaker, role: str, requests: int, seconds: float = 0.005, failed: float = 0.0, seed: int = 0
) -> None:
    """So many requests, each failing by chance, with latencies as they are: skewed, with a long tail."""
    draw = random.Random(seed)
    for _ in range(requests):
        breaker.observe(role, seconds * draw.lognormvariate(0, 0.5), draw.random() < failed)


def test_a_release_that_always_fails_is_found_after_three_requests() -> None:
    """Whoever is in the canary has no time to lose."""
    breaker = CanaryBreaker(LIMITS)
    for asked in range(1, 4):
        assert breaker.judge() is None
        ask(breaker, "challenger", 1, failed=1.0, seed=asked)
    assert "3 of 3 requests of the challenger failed (allowed: 1.0%" in (breaker.judge() or "")


def test_one_that_fails_often_is_found_soon() -> None:
    """A fifth of the requests fails: known within 50, not at once, and not only after thousands."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "challenger", 50, failed=0.2)
    assert breaker.judge()


def test_a_sound_canary_is_not_ended_by_chance() -> None:
    """One in 200 fails, where one in 100 may; looked at every 20 requests, 100 canaries long."""
    false = 0
    for seed in range(100):
        breaker = CanaryBreaker(LIMITS)
        for part in range(100):
            ask(breaker, "champion", 20, failed=0.002, seed=1000 * seed + part)
            ask(breaker, "challenger", 20, failed=0.005, seed=5_000_000 + 1000 * seed + part)
            if breaker.judge():
                false += 1
                break
    assert false <= 1


def test_what_fails_for_everybody_is_not_the_challengers_fault() -> None:
    """A third of all requests fails, whoever answers: the canary goes on."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "champion", 300, failed=0.3, seed=1)
    ask(breaker, "challenger", 300, failed=0.3, seed=2)
    assert breaker.judge() is None
    ask(breaker, "challenger", 300, failed=1.0, seed=3)
    assert breaker.judge()


def test_a_slow_challenger_is_found_after_the_stated_requests() -> None:
    """Ten times as slow, where three are allowed: not before `min_requests` of each, soon after."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "champion", 400, seed=1)
    ask(breaker, "challenger", 49, 0.05, seed=2)
    assert breaker.judge() is None
    ask(breaker, "challenger", 51, 0.05, seed=3)
    assert "times the champion's (allowed: 3 times" in (breaker.judge() or "")


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_challenger_within_its_bound_goes_on(ratio: float) -> None:
    """Also where few of a champion's requests are there to compare with, whatever the machine's hiccups."""
    for seed in range(100):
        breaker = CanaryBreaker(LIMITS)
        ask(breaker, "champion", 100, seed=seed)
        ask(breaker, "challenger", 60, 0.005 * ratio, seed=1000 + seed)
        assert breaker.judge() is None


def test_what_nobody_can_feel_is_not_slow() -> None:
    """0.1 ms against 0.01 ms is ten times, and no reason to end anything."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "champion", 1000, 0.00001)
    ask(breaker, "challenger", 1000, 0.0001)
    assert breaker.judge() is None


def test_latency_is_of_late() -> None:
    """A champion that was slow in the morning is no excuse for a challenger that is slow now."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "champion", 2000, 0.1)
    ask(breaker, "challenger", 2000, 0.1)
    assert breaker.judge() is None
    ask(breaker, "champion", 2000, 0.005)
    assert breaker.judge()


def test_an_observation_costs_next_to_nothing() -> None:
    """Half a microsecond, on any machine that tests run on."""
    breaker = CanaryBreaker(LIMITS)
    best = min(timeit.repeat(lambda: breaker.observe("champion", 0.001, False), number=20_000, repeat=5)) / 20_000
    assert best < 0.5e-6


def test_a_busy_process_keeps_a_bounded_number_of_observations() -> None:
    """Whatever happens to the thread that judges."""
    breaker = CanaryBreaker(LIMITS)
    ask(breaker, "champion", 50_000)
    ask(breaker, "challenger", 50_000, 0.05)
    assert breaker.judge()


def test_the_bounds_of_a_share_hold_what_they_say() -> None:
    """In samples of a known share, the interval misses it about twice in a thousand."""
    draw, missed, samples = random.Random(7), 0, 3000
    for _ in range(samples):
        requests = draw.choice([30, 100, 500])
        failures = sum(draw.random() < 0.1 for _ in range(requests))
        missed += not lowest_share(failures, requests) <= 0.1 <= highest_share(failures, requests)
    assert missed / samples < 0.006


def test_a_quantile_lies_between_its_bounds() -> None:
    """Of many samples of one distribution the bounds hold its true 95th percentile nearly always."""
    draw = random.Random(8)
    truth = statistics.NormalDist().inv_cdf(0.95)
    missed = 0
    for _ in range(500):
        sample = [draw.gauss(0, 1) for _ in range(400)]
        assert quantile(sample, -3.09) <= quantile(sample) <= quantile(sample, 3.09)
        missed += not quantile(sample, -3.09) <= truth <= quantile(sample, 3.09)
    assert missed <= 5
