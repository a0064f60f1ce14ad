"""Many models in little memory: who is not asked sleeps, who is asked wakes, and every answer is right."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from mlops_assets.serving import metrics
from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.prediction_log import NoLog
from mlops_assets.serving.releases.follower import FollowedReleases
from mlops_assets.serving.releases.memory import BUDGET, MemoryBudgetError, Shelf, files, memory_budget, resident

if TYPE_CHECKING:
    from conftest import Platform

MODELS, ROOM, BALLAST = 30, 5, 4 * 2**20
WHO = {"by": "ada", "why": "a test"}


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("", None),
        ("2GB", 2_000_000_000),
        ("800mb", 800_000_000),
        ("1.5GiB", 1_610_612_736),
        ("4096", 4096),
        ("2 G", 2_000_000_000),
    ],
)
def test_a_budget_is_written_as_people_write_sizes(
    said: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decimal and binary units; nothing said, no bound."""
    monkeypatch.setenv(BUDGET, said)
    assert memory_budget() == size


@pytest.mark.parametrize("said", ["much", "-1GB", "0", "2TB", "1IB", "GB"])
def test_a_budget_that_is_none_stops_the_process(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be ignored otherwise, and found out when memory is full."""
    monkeypatch.setenv(BUDGET, said)
    with pytest.raises(MemoryBudgetError, match=r"Write it as 800MB, 2GB or 1\.5GiB"):
        memory_budget()


def test_a_release_is_charged_at_least_its_files(make_bundle: Callable[..., Path]) -> None:
    """Also where the allocator had room left; the libraries of the first one are nobody's charge."""
    bundle = make_bundle(1)
    shelf = Shelf(lambda _: bundle, budget=10**9)
    shelf.load("m:1", "flights/late_arrival")
    assert shelf.weight >= files(bundle / "model") > 0
    assert shelf.weight < resident() / 4
    shelf.forget({"m:1"})
    assert shelf.weight == 0


NAMES = [f"crowd/model_{number}" for number in range(MODELS)]


@pytest.fixture(scope="module")
def bundles(make_bundle: Callable[..., Path]) -> list[Path]:
    """Small models, made heavy by a file beside each, so that what the allocator does decides nothing."""
    made = [make_bundle(number, name) for number, name in enumerate(NAMES)]
    for bundle in made:
        with (bundle / "model" / "ballast").open("wb") as ballast:
            ballast.truncate(BALLAST)
    return made


class Crowd:
    """Thirty models of one release each, where there is room for five."""

    def __init__(self, platform: Platform, bundles: Sequence[Path]) -> None:
        self.platform = platform
        for number, (name, bundle) in enumerate(zip(NAMES, bundles, strict=True)):
            tag = f"{name.replace('/', '_')}:{number}"
            platform.bundle_of(tag).parent.mkdir(parents=True)
            platform.bundle_of(tag).symlink_to(bundle)
            platform.records.start_canary(name, tag, str(number), [100], **WHO)
        self.expected = [json.loads((bundle / "golden.json").read_bytes())["predictions"][0] for bundle in bundles]
        self.budget = ROOM * max(files(bundle / "model") for bundle in bundles)

    def follow(self) -> FollowedReleases:
        return self.platform.follow(budget=self.budget)


@pytest.fixture
def crowd(platform: Platform, bundles: list[Path]) -> Crowd:
    return Crowd(platform, bundles)


def ask(follower: FollowedReleases, name: str) -> float:
    """One request, as the app makes it."""
    served = follower.served(name)
    assert served is not None
    if served.asleep:
        served = follower.wake(name)
    assert served.traffic is not None
    champion = served.traffic.champion
    return champion.predict(champion.golden.rows[:1])[0]


def total(counter: object) -> float:
    """Over all models."""
    return sum(
        sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")
    )  # type: ignore[attr-defined]


def asleep(follower: FollowedReleases) -> set[str]:
    return {name for name in follower.models() if (served := follower.peek(name)) and served.asleep}


def test_thirty_models_answer_from_room_for_five(crowd: Crowd) -> None:
    """Asked at random from several threads: every answer is the right model's, and memory stays in its bounds."""
    follower = crowd.follow()
    assert follower.not_ready() == [], "who sleeps is ready"
    sleeps, wakes, weights = total(metrics.SLEEPS), total(metrics.WAKES), list[int]()

    def one(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            number = draw.randrange(MODELS)
            assert ask(follower, NAMES[number]) == pytest.approx(crowd.expected[number], abs=1e-6)
            weights.append(follower._shelf.weight)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert total(metrics.WAKES) - wakes > MODELS
    assert total(metrics.SLEEPS) - sleeps > MODELS
    assert max(weights) <= crowd.budget + max(follower._shelf._charges.values()), "more than one was over the budget"
    assert follower._shelf.weight <= crowd.budget
    assert len(asleep(follower)) >= MODELS - ROOM


def test_who_was_asked_last_stays_awake(crowd: Crowd) -> None:
    """The one that sleeps is the one that nobody wanted for the longest time."""
    follower = crowd.follow()
    favourite, others = NAMES[0], NAMES[1:]
    ask(follower, favourite)
    for name in others:
        ask(follower, name)
        ask(follower, favourite)
        assert favourite not in asleep(follower) and name not in asleep(follower)


def test_looking_is_not_asking(crowd: Crowd) -> None:
    """Metrics and the OpenAPI page look at all models every second; none of them is used by that, and none woken."""
    follower = crowd.follow()
    before, weight = asleep(follower), follower._shelf.weight
    for name in NAMES:
        follower.peek(name)
    assert (asleep(follower), follower._shelf.weight) == (before, weight)


def test_one_wake_serves_all_who_wait(crowd: Crowd) -> None:
    """Ten requests for one model that sleeps: it is loaded once."""
    follower = crowd.follow()
    name = min(asleep(follower))
    wakes, together = total(metrics.WAKES), threading.Barrier(10)

    def one(_: int) -> float:
        together.wait()
        return ask(follower, name)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(one, range(10)))
    assert len(set(answers)) == 1
    assert total(metrics.WAKES) - wakes == 1


def test_a_release_of_a_model_that_sleeps_is_proved_when_it_is_made(crowd: Crowd) -> None:
    """Not when somebody asks: a broken one is refused at once, a sound one answers."""
    follower, platform = crowd.follow(), crowd.platform
    first, second = sorted(asleep(follower))[:2]
    platform.release(77, model=first, golden_shift=0.1)
    platform.eventually(lambda: platform.records.read(first).change.action == "refused")
    platform.release(78, model=second)
    platform.eventually(lambda: platform.state(follower, second).record.champion.version == "78")
    assert ask(follower, first) == pytest.approx(crowd.expected[NAMES.index(first)], abs=1e-6)
    served = follower.served(second)
    served = follower.wake(second) if served.asleep else served
    assert served.traffic.shares[-1][0].version == "78"


def test_a_model_that_cannot_be_woken_says_why(crowd: Crowd) -> None:
    """Its Bento is gone: no traffic, a reason, the process goes on and the record is not to blame."""
    follower, platform = crowd.follow(), crowd.platform
    name = min(asleep(follower))
    revision = platform.records.read(name).revision
    platform.bundle_of(platform.records.read(name).champion.release).unlink()
    served = follower.wake(name)
    assert served.traffic is None and "BrokenBundleError" in str(served.refused)
    time.sleep(1.5)  # its second try
    assert follower.not_ready() == [name]
    assert platform.records.read(name).revision == revision
    assert ask(follower, NAMES[-1]) == pytest.approx(crowd.expected[-1], abs=1e-6)


def test_without_a_budget_nobody_sleeps(platform: Platform) -> None:
    """As it always was."""
    for number in range(3):
        platform.release(number, model=f"crowd/model_{number}")
    assert asleep(platform.follow()) == set()


def test_standby_goes_before_anybody_sleeps(platform: Platform) -> None:
    """What a rollback would return to is kept only where there is room for it."""
    platform.release(1)
    small = platform.follow(budget=1)
    large = platform.follow(budget=10**9)
    platform.release(2)
    platform.eventually(lambda: platform.versions(small) == platform.versions(large) == {"2": 100})
    platform.eventually(lambda: len(small._shelf.tags()) == 1)
    assert len(large._shelf.tags()) == 2
    platform.records.rollback("flights/late_arrival", **WHO)
    platform.eventually(lambda: platform.versions(small) == platform.versions(large) == {"1": 100})


def test_over_http_nobody_can_tell_who_slept(crowd: Crowd) -> None:
    """Every model answers, the process is ready all the time, a page says who sleeps, and both are counted."""
    follower = crowd.follow()
    sleeper = min(asleep(follower))
    features = dict.fromkeys(("distance", "carrier", "seats", "holiday", "temp", "delay"))

    async def ask_all() -> None:
        app = create_app(lambda: Serving(follower, EmptyStore(), NoLog()))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://here") as client,
        ):
            assert (await client.get(f"/{sleeper}/release")).json()["asleep"] is True
            asked = [client.post(f"/{name}/predict", json={"rows": [{"features": features}]}) for name in NAMES]
            answers = await asyncio.gather(*asked)
            assert {answer.status_code for answer in answers} == {200}
            versions = [answer.json()["predictions"][0]["version"] for answer in answers]
            assert versions == [str(number) for number in range(MODELS)]
            assert (await client.get("/readyz")).status_code == 200
            text = (await client.get("/metrics")).text
            assert f'mlops_endpoint_wakes_total{{model="{sleeper}"}}' in text
            assert "mlops_endpoint_sleeps_total{" in text

    asyncio.run(ask_all())
