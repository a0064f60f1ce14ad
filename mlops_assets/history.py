"""The history of a model: moves of the champion alias and of the endpoint's traffic, in one order of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_assets.declarations import ModelPipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.champions import ChampionStore
    from resources.releases import ReleaseStore, Variant


@dataclass(frozen=True)
class Event:
    """Who or what did what, when, why, from which versions to which."""

    at: str
    by: str
    what: str
    before: str
    after: str
    why: str


def events(model: ModelPipeline, releases: ReleaseStore, champions: ChampionStore) -> list[Event]:
    """Everything that happened to the model, oldest first."""
    crowned = [
        Event(
            move.at,
            move.by,
            "champion",
            f"version {move.before}" if move.before else "none",
            f"version {move.after}",
            move.why,
        )
        for move in champions.history(model.id)
    ]
    traffic = [
        Event(change.at, change.by, change.action, _shares(change.before), _shares(change.after), change.why)
        for change in releases.history(model.id)
    ]
    return sorted([*crowned, *traffic], key=lambda event: event.at)


def author(by: str) -> str:
    """A run by the part of its id that Dagster's pages show; people and sensors by their names."""
    return by[:12] if by.startswith("run ") else by


def clock(at: str) -> str:
    """A time of the history as people read it; all of them are in UTC."""
    return at[:19].replace("T", " ")


def _shares(variants: Sequence[Variant]) -> str:
    return ", ".join(map(_share, variants)) or "none"


def _share(variant: Variant) -> str:
    return f"version {variant.version} " + ("as shadow" if variant.role == "shadow" else f"{variant.weight} %")
