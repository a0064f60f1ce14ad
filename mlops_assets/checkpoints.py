"""How far a fit came, kept so that a training that was killed goes on from there to the very same model.

    <work directory>/made_from.json      what the training depends on: what lies beside is of nothing else
                     machine.json        the machine and the device that work, or worked last, on it
                     trials.jsonl        the trials of its search that ended
                     checkpoints/<fit>-<hash>.checkpoint
                     ended.json          what it told, written last

A checkpoint is one file a fit: a line of JSON (what it was made from, the rounds done, what else the fit must
remember, the hash of the rest), then the model as its library writes it; never a pickle. It is published by rename.
One that is damaged is ignored, and the log says why: the fit then starts over. One that was made from something else
is an error: its name holds what it was made from, so that somebody put it there, and may want it back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

FORMAT = "checkpoint-1"
MADE_FROM, TRIALS, FOLDER, ENDED = "made_from.json", "trials.jsonl", "checkpoints", "ended.json"
MACHINE = "machine.json"

logger = logging.getLogger(__name__)


class OtherCheckpointError(ValueError):
    """A fit found the checkpoint of another model in the place of its own."""

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(
            f"Checkpoint {path} is of another model: it was made from other rows, parameters, code or libraries. "
            "Nothing was started or overwritten. Move it back to where it came from; this fit then starts over."
        )


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds: the model after `rounds` rounds (or epochs), and what its fit must remember."""

    made_from: str
    rounds: int
    notes: dict[str, Any]
    model: bytes
    watched: list[tuple[int, float, bool]] = field(default_factory=list)


@dataclass
class Progress:
    """The checkpoints of one fit: the newest is found again by the next fit that was made from the same.

    `made_from` is whatever must be equal, as JSON. A checkpoint is due `seconds` after the last one, or after each
    `rounds` rounds, whichever comes first; None of either is never. `follower` is told what each round reached; so is
    `watch`, which may end the fit by an error, and to which a fit that goes on tells the earlier rounds again.
    """

    path: Path | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    rounds: int | None = None
    follower: Callable[[int, float], None] | None = None
    watch: Callable[[int, float, bool], None] | None = None

    def __post_init__(self) -> None:
        self._last_round, self._last_time = 0, time.monotonic()
        self._watched: list[tuple[int, float, bool]] = []

    @classmethod
    def of(cls, out: Path, fit: str, made_from: Mapping[str, Any], when: Mapping[str, Any] | None) -> Self:
        """For a fit of the training in `out`, as often as `when` (its `seconds` and `rounds`) says; None keeps none."""
        if when is None:
            return cls()
        path = out / FOLDER / f"{fit}-{digest(made_from)}.checkpoint"
        return cls(path, made_from, when["seconds"], when["rounds"])

    def kept(self) -> Kept | None:
        """Where an earlier fit came to; None to begin at the beginning. Raises OtherCheckpointError."""
        if self.path is None or not self.path.is_file():
            return None
        found = _read(self.path)
        if isinstance(found, str):
            logger.warning("checkpoint %s is ignored: %s; the fit starts over", self.path.name, found)
            return None
        if found.made_from != digest(self.made_from):
            raise OtherCheckpointError.of(self.path)
        logger.info("continuing %s after %s rounds", self.path.stem, found.rounds)
        self._last_round = found.rounds
        for at, score, higher_is_better in found.watched:
            self._watch(at, score, higher_is_better)
        return found

    def reached(self, rounds: int, model: Callable[[], bytes], **notes: Any) -> None:
        """After each round: write down the model and `notes` (JSON), if it is time to.

        A checkpoint that cannot be written (a full disk) ends no training; the log says so, and the next is tried.
        """
        if self.path is None or not self._due(rounds):
            return
        written = model()
        header = {
            "format": FORMAT,
            "made_from": digest(self.made_from),
            "rounds": rounds,
            "notes": notes,
            "watched": self._watched,
            "sha256": hashlib.sha256(written).hexdigest(),
        }
        try:
            publish(self.path, json.dumps(header).encode() + b"\n" + written)
        except OSError as problem:
            logger.warning("checkpoint %s could not be written: %s; the fit goes on", self.path.name, problem)
        self._last_round, self._last_time = rounds, time.monotonic()

    def scored(self, at: int, score: float, higher_is_better: bool = False) -> None:
        """After each round, from 0 on, that is judged on validation rows: tell the score to whoever follows the fit."""
        if self.follower is not None:
            self.follower(at, score)
        self._watch(at, score, higher_is_better)

    def _watch(self, at: int, score: float, higher_is_better: bool) -> None:
        if self.watch is not None:
            self._watched.append((at, score, higher_is_better))
            self.watch(at, score, higher_is_better)

    def _due(self, rounds: int) -> bool:
        by_rounds = self.rounds is not None and rounds - self._last_round >= self.rounds
        by_time = self.seconds is not None and time.monotonic() - self._last_time >= self.seconds
        return by_rounds or by_time


NO_CHECKPOINTS = Progress()


def take_up(out: Path, made_from: Mapping[str, Any]) -> None:
    """Make `out` the place of a training: what an earlier one of the same left stays, what another left goes."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / MADE_FROM
    before = _json(note)
    if before is not None and before != made_from:
        differing = sorted(name for name in {*before, *made_from} if before.get(name) != made_from.get(name))
        logger.warning("%s holds a training with other %s: this one starts over", out.name, ", ".join(differing))
    if before != made_from:
        for name in (ENDED, TRIALS):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        publish(note, json.dumps(made_from).encode())


def end(out: Path, made_from: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Write down what a training told: it need not be done again, whatever comes after it."""
    publish(out / ENDED, json.dumps({"made_from": made_from, "told": told}).encode())


def ended(out: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an ended training of the same told, if what it made is still there; else None."""
    document = _json(out / ENDED)
    if document is None or document["made_from"] != made_from:
        return None
    told: dict[str, Any] = document["told"]
    return told if Path(told["bundle"]).is_dir() and Path(told["holdout"]).is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_bytes()) if path.is_file() else None


def digest(document: Any) -> str:
    """The same for equal JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def publish(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the machine itself stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk half a file is in the way of everything else
        raise
    beside.replace(path)


def _read(path: Path) -> Kept | str:
    """What the file holds, or what is wrong with it."""
    head, _, model = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(head)
    except ValueError:
        return "it is damaged (its first line is no JSON)"
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return f"it is not in the format {FORMAT}"
    if hashlib.sha256(model).hexdigest() != header.get("sha256"):
        return "it is damaged (its model has another hash than was written down)"
    return Kept(header["made_from"], header["rounds"], header["notes"], model, header["watched"])
