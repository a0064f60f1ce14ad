"""Several at once, each a process: daemons that tick the same sensors, people who promote the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.day import drifted, filled
from faults.dying import started
from faults.seen import agreed
from faults.works import Chain, Moves, Ticks, Told

if TYPE_CHECKING:
    from conftest import Platform

WAIT_SECONDS = 120


def together(platform: Platform, place: Path, *works: Any) -> list[Any]:
    """What each work returned, when all began at the same moment."""
    go, notes = place / "go", [place / f"{number}.json" for number in range(len(works))]
    processes = [started(platform.home, Told(work, note, go)) for work, note in zip(works, notes, strict=True)]
    while not all(note.with_suffix(".ready").exists() for note in notes):
        assert all(process.is_alive() for process in processes)
    go.touch()
    for process in processes:
        process.join(WAIT_SECONDS)
        assert process.exitcode == 0
    return [json.loads(note.read_text()) for note in notes]


def test_two_daemons_without_cursors_ask_for_one_retraining(shop: Platform, tmp_path: Path) -> None:
    """However often both tick, one decision to retrain is in the history, one event in the inbox, and one of the two
    daemons asks for its run, once.
    """
    from resources.decisions import DecisionStore
    from resources.events import Inbox

    drifted(shop)
    asked = together(shop, tmp_path, Ticks("retrain", 5), Ticks("retrain", 5))
    keys = [key for keys in asked for key in keys]
    assert len(keys) == 1
    decided = [line.outcome for line in DecisionStore().history(shop.model.id) if line.kind == "retrain"]
    assert decided.count("retrain") == 1
    assert [received.event.id for received in Inbox().open("flights__late_arrival__retrain")] == keys


def test_a_duplicate_tick_of_any_sensor_of_the_model_changes_nothing(shop: Platform) -> None:
    """A canary that has no new evidence stands where it is; a day whose log has grown is asked for by the same key."""
    for link in ("champion", "bento", "endpoint"):
        filled(shop.run(link))
    shop.tick("rollout")
    before = shop.published
    for sensor in ("rollout", "late_answers"):
        keys = set()
        for _ in range(3):
            shop.cursors.clear()
            keys.add(tuple(request.run_key for request in shop.tick(sensor).run_requests or []))
        assert len(keys) == 1
    assert shop.published == before


def test_promotions_of_one_model_at_once_leave_one_champion(shop: Platform, tmp_path: Path) -> None:
    """Traffic and alias name the same version, both histories are whole, and who was overtaken was told so."""
    bento = [shop.promotion.bento_of(shop.model, version) for version in ("1", "2")]
    assert len(set(bento)) == 2
    changes = len(shop.published["changes"])
    moves = [["2", "1", "2"], ["1", "2", "1"], ["2", "1", "1"]]
    overtaken = together(shop, tmp_path, *map(Moves, moves))
    now = shop.published
    assert now["alias"] == now["release"].champion.version
    assert len(now["changes"]) - changes <= 9 - sum(overtaken)
    agreed(shop)


def test_a_promotion_beside_a_training_leaves_one_champion(shop: Platform, tmp_path: Path) -> None:
    """A person goes back and forth while the chain crowns and releases a new version."""
    together(shop, tmp_path, Chain(), Moves(["2", "1", "2", "1"]))
    agreed(shop)
