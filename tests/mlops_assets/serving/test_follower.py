"""Following the release records: only releases that proved themselves ever get traffic."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.serving.follower import FollowedReleases
from mlops_assets.serving.releases import Served
from mlops_assets.serving.traffic import Traffic, bucket_of
from resources.releases import ReleaseStore, Variant

MODEL = "flights/late_arrival"
WHO = {"by": "ada", "why": "a test"}


class Platform:
    """Records and bundles in a folder, without BentoML: a tag is the name of a folder."""

    def __init__(self, root: Path, make_bundle: Callable[..., Path]) -> None:
        self.root, self.records, self.make_bundle = root, ReleaseStore(root / "releases"), make_bundle
        self.followers: list[FollowedReleases] = []

    def bundle_of(self, tag: str) -> Path:
        return self.root / tag.replace(":", "/")

    def bento(self, version: int, **broken: Any) -> str:
        tag = f"flights_late_arrival:{version}"
        shutil.copytree(self.make_bundle(version, **broken), self.bundle_of(tag))
        return tag

    def release(self, version: int, steps: tuple[int, ...] = (100,), **broken: Any) -> None:
        self.records.start_canary(MODEL, self.bento(version, **broken), str(version), steps, **WHO)

    def follow(self, *names: str) -> FollowedReleases:
        self.followers.append(FollowedReleases(self.records, self.bundle_of, names))
        return self.followers[-1]


@pytest.fixture
def platform(tmp_path: Path, make_bundle: Callable[..., Path]) -> Iterator[Platform]:
    platform = Platform(tmp_path, make_bundle)
    yield platform
    for follower in platform.followers:
        follower.close()


def state(follower: FollowedReleases, model: str = MODEL) -> Served:
    served = follower.served(model)
    assert served is not None
    return served


def versions(follower: FollowedReleases) -> dict[str, int]:
    traffic = state(follower).traffic
    return {variant.version: variant.weight for variant, _ in traffic.shares} if traffic else {}


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_new_release_is_followed(platform: Platform) -> None:
    """The write of the record is all it takes; who stopped following says so."""
    platform.release(1)
    follower = platform.follow()
    assert versions(follower) == {"1": 100}
    platform.release(2)
    eventually(lambda: versions(follower) == {"2": 100})
    follower.close()
    assert follower.not_ready() == [MODEL]


def test_a_model_released_later_is_found(platform: Platform) -> None:
    """Without a list of names, whatever gets a record is served."""
    follower = platform.follow()
    assert follower.served(MODEL) is None
    assert follower.not_ready() == []
    platform.release(1)
    eventually(lambda: MODEL in follower.models())


def test_only_the_named_models_are_followed(platform: Platform) -> None:
    """A named model without a release is known, has no traffic, and does not keep the process unready."""
    platform.release(1)
    follower = platform.follow("flights/minutes_late")
    assert follower.models() == ["flights/minutes_late"]
    assert state(follower, "flights/minutes_late").traffic is None
    assert follower.not_ready() == []


@pytest.mark.parametrize("broken", [{"golden_shift": 0.1}, {"model": "flights/other"}])
def test_a_broken_release_is_refused_and_the_old_one_serves_on(platform: Platform, broken: dict[str, Any]) -> None:
    """It fails golden, or it is of another model: no traffic, and the reason is told."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2, **broken)
    eventually(lambda: bool(state(follower).refused))
    assert versions(follower) == {"1": 100}
    assert list(state(follower).refused) == ["flights_late_arrival:2"]
    platform.release(3)
    eventually(lambda: versions(follower) == {"3": 100})
    assert state(follower).refused == {}


def test_a_broken_challenger_leaves_everything_to_the_champion(platform: Platform) -> None:
    """Its share of the traffic goes back to the champion."""
    platform.release(1)
    platform.release(2, steps=(50, 100), golden_shift=0.1)
    follower = platform.follow()
    traffic = state(follower).traffic
    assert traffic is not None
    assert {traffic.choose(MODEL, [n])[0].version for n in range(100)} == {"1"}
    assert list(state(follower).refused) == ["flights_late_arrival:2"]


def test_a_process_that_starts_on_a_broken_champion_serves_the_one_before(platform: Platform) -> None:
    """A restarted worker answers as one that was running does."""
    platform.release(1)
    platform.release(2, golden_shift=0.1)
    follower = platform.follow()
    assert versions(follower) == {"1": 100}
    assert follower.not_ready() == []


def test_with_nothing_to_serve_the_process_is_not_ready(platform: Platform) -> None:
    """The first release is broken, or its Bento is gone: 503 and a reason, not a crash."""
    platform.release(1, golden_shift=0.1)
    follower = platform.follow()
    assert follower.not_ready() == [MODEL]
    assert "GoldenMismatchError" in state(follower).refused["flights_late_arrival:1"]


def test_a_record_broken_by_hand_changes_nothing(platform: Platform) -> None:
    """It is reported, and the release that serves goes on."""
    platform.release(1)
    follower = platform.follow()
    platform.records.path(MODEL).write_text("{")
    eventually(lambda: "record" in state(follower).refused)
    assert versions(follower) == {"1": 100}


def test_rollback_needs_no_loading(platform: Platform) -> None:
    """The release before stays in memory: even without its files a rollback is followed."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2)
    eventually(lambda: versions(follower) == {"2": 100})
    shutil.rmtree(platform.bundle_of("flights_late_arrival:1"))
    platform.records.rollback(MODEL, **WHO)
    eventually(lambda: versions(follower) == {"1": 100})
    assert state(follower).refused == {}


def test_releases_that_are_no_longer_needed_give_their_memory_back(platform: Platform) -> None:
    """What serves and what a rollback returns to is kept; nothing else."""
    platform.release(1)
    follower = platform.follow()
    for version in (2, 3, 4):
        platform.release(version)
        eventually(lambda expected=str(version): versions(follower) == {expected: 100})  # type: ignore[misc]
    assert follower._shelf.tags() == {"flights_late_arrival:3", "flights_late_arrival:4"}


def split(weight: int) -> Traffic:
    challenger, champion = Variant("b:2", "2", weight, "challenger"), Variant("b:1", "1", 100 - weight)
    return Traffic(((challenger, None), (champion, None)))  # type: ignore[arg-type]


@given(keys=st.lists(st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.none()), min_size=1, max_size=3))
def test_a_key_stays_in_a_growing_canary(keys: list[Any]) -> None:
    """The same keys get the same variant, and who is in the canary at 10 % is in it at 50 % and 100 %."""
    chosen = [split(weight).choose(MODEL, keys)[0].role for weight in (0, 10, 50, 100)]
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1]) == ("champion", "challenger")
    assert split(10).choose(MODEL, keys) == split(10).choose(MODEL, list(keys))


@pytest.mark.parametrize("weight", [1, 10, 50, 90])
def test_traffic_is_split_as_stated(weight: int) -> None:
    """Over many keys the share is the weight (within 5 standard deviations of a fair draw)."""
    keys, share = 20_000, weight / 100
    counted = Counter(split(weight).choose(MODEL, [f"N{n}"])[0].role for n in range(keys))
    assert abs(counted["challenger"] - keys * share) < 5 * (keys * share * (1 - share)) ** 0.5


def test_models_draw_their_canaries_apart() -> None:
    """One key is not in the canary of every model."""
    buckets = [bucket_of(f"team/model_{n}", ["N1"]) for n in range(50)]
    assert len({bucket // 10 for bucket in buckets}) > 5
