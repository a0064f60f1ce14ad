"""The record of a training: with its manifest, all that making the same model again takes, or explaining another one.

`record.json` lies in the bundle: the arguments of the training, what it was made from, the versions of the partitions
that its rows were joined from, every trial, the hash of every model file, the metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlops_assets.checkpoints import TRIALS
from mlops_assets.manifest import WHERE_AND_HOW
from mlops_assets.search import journalled

RECORD = "record.json"


def training_record(out: Path, trained: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the training that worked in `out`; `known` is what its caller knew before it."""
    arguments = {name: value for name, value in known["arguments"].items() if name not in WHERE_AND_HOW}
    return {
        **known,
        "arguments": arguments,
        "best_params": trained["best_params"],
        "params": trained["params"],
        "rows": trained["rows"],
        "metrics": trained["metrics"],
        "trials": trials_of(out),
        "files": file_hashes(out / "bundle" / "model"),
    }


def trials_of(out: Path) -> list[dict[str, Any]]:
    """What was drawn and what it was worth, in order."""
    return [{name: line[name] for name in ("params", "value")} for line in journalled(out / TRIALS)]


def file_hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file below, by its path there."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
