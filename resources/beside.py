"""A file that is there whole or not at all: written under a hidden name beside its place, then renamed.

A writer that was killed leaves its hidden file; whoever writes the same file a day later removes it, so that they do
not pile up. Not at once: it may be another writer's, still at work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

FORGOTTEN_SECONDS = 24 * 3600.0


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends without an error; else what was there stays."""
    place = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield place
        os.replace(place, path)
    finally:
        place.unlink(missing_ok=True)
        _forget(path)


def _forget(path: Path) -> None:
    """Remove what killed writers of this file left."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
                left.unlink()
        except FileNotFoundError:
            continue  # another writer was quicker
