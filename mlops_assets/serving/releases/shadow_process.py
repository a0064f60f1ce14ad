"""The process of a shadow: reads questions from its input, answers them into the prediction log, ends with its input.

It says "ready", or why it cannot be, in one line of its output. Signals that a terminal or a supervisor sends to the
whole group are for the process that it belongs to: when that one ends, however it ends, the input does too.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlops_assets.serving.bundle import Release
    from mlops_assets.serving.plan import Store
    from mlops_assets.serving.prediction_log import PredictionWriter
    from mlops_assets.serving.releases.told import Told
    from resources.release_record import Variant

LOWEST = 19  # before anything heavy is imported: that alone would take a processor for a second
COMPLAINTS = 20  # of questions that it cannot answer: they are alike
logger = logging.getLogger(__name__)


def main() -> None:
    """`MODEL RELEASE VERSION BUNDLE`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.nice(LOWEST)
    model, tag, version, bundle = sys.argv[1:]
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no word of ours
    said, release = _loaded(Path(bundle), model)
    os.write(output, said.encode() + b"\n")
    if release is not None:
        _answer_all(release, tag, version)


def _loaded(bundle: Path, model: str) -> tuple[str, Release | None]:
    from mlops_assets.serving.bundle import Release
    from mlops_assets.serving.releases.shadow import READY

    try:
        return READY, Release.load(bundle, model)
    except Exception as error:  # noqa: BLE001  a broken model fails in whatever way its library fails; it is told
        return " ".join(f"{type(error).__name__}: {error}".split()), None


def _answer_all(release: Release, tag: str, version: str) -> None:
    from mlops_assets.serving.guarded_store import GuardedStore
    from mlops_assets.serving.prediction_log import PredictionLog
    from mlops_assets.serving.releases.told import Told
    from resources.online.packed_store import online_store_url
    from resources.release_record import Variant

    variant, complaints = Variant(tag, version, 0, "shadow"), 0
    store, log = GuardedStore.at(online_store_url()), PredictionLog().writer()
    try:
        for told in Told.read_all(sys.stdin.buffer):
            try:
                _answer(told, release, variant, store, log)
            except Exception:
                complaints += 1
                if complaints <= COMPLAINTS:
                    logger.warning("shadow %s cannot answer", tag, exc_info=True)
    finally:
        log.close()


def _answer(told: Told, release: Release, variant: Variant, store: Store, log: PredictionWriter) -> None:
    from mlops_assets.serving import stages

    began = perf_counter()
    answers = stages.answer(release, variant, told.asked_of(release.plan.inputs), store)
    answers.latency_ms = (perf_counter() - began) * 1000
    log.write(answers)


if __name__ == "__main__":
    main()
