"""The releases in the memory of one process, what each of them weighs, and how much they may weigh together.

    MLOPS_ENDPOINT_MEMORY=2GB     for the releases, beyond what the process itself takes (about 300 MB); unset: no bound

A release is charged what the process grew by while it loaded, at least its files: the allocator may have had room
left from one that went before. Who may be forgotten is for the follower to say; here nothing is decided, and nothing
is safe from two threads that change it at once.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Self

from mlops_assets.serving.bundle import Release

BUDGET = "MLOPS_ENDPOINT_MEMORY"
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class MemoryBudgetError(ValueError):
    """MLOPS_ENDPOINT_MEMORY is not a size."""

    @classmethod
    def of(cls, given: str) -> Self:
        return cls(f"{BUDGET} is {given!r}, which is no size of memory. Write it as 800MB, 2GB or 1.5GiB, or unset it.")


def memory_budget() -> int | None:
    """The bytes that the environment allows for releases; None where it says nothing. Raises MemoryBudgetError."""
    given = os.environ.get(BUDGET, "").strip()
    if not given:
        return None
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", given.upper())
    if size is None or size[2] == "I" or float(size[1]) <= 0:
        raise MemoryBudgetError.of(given)
    return int(float(size[1]) * UNITS[size[2]])


class Shelf:
    """Releases by Bento tag. A Bento never changes, so that one is read from disk once while it is here."""

    def __init__(self, bundle_of: Callable[[str], Path], budget: int | None = None) -> None:
        self._bundle_of = bundle_of
        self._budget = budget
        self._releases: dict[str, Release] = {}
        self._charges: dict[str, int] = {}
        self._measured: set[str] = set()  # frameworks that were loaded before, their libraries with them

    def get(self, tag: str, model: str) -> Release | None:
        """The release of that tag, if it is here and the model's."""
        release = self._releases.get(tag)
        return release if release is not None and release.model == model else None

    def tags(self) -> set[str]:
        return set(self._releases)

    def load(self, tag: str, model: str) -> None:
        """Read, check and warm a release; raises whatever is wrong with it, also that it is another model's."""
        if self.get(tag, model) is None:
            bundle = self._bundle_of(tag)
            load = Release.load if self._budget is None else partial(self._measured_load, tag)
            self._releases[tag] = load(bundle, model)

    def forget(self, tags: Iterable[str]) -> None:
        """Give their memory back, as soon as the requests that they are answering now are over."""
        gone = [self._releases.pop(tag, None) for tag in tags]
        if self._budget is not None and any(gone):
            del gone
            trim()

    @property
    def over(self) -> bool:
        """Do the releases weigh more than they may?"""
        return self._budget is not None and self.weight > self._budget

    @property
    def weight(self) -> int:
        return sum(self._charges.get(tag, 0) for tag in list(self._releases))

    def _measured_load(self, tag: str, bundle: Path, model: str) -> Release:
        """Loaded once more where a library comes along: that is nobody's charge, and stays when the model has gone."""
        before = resident()
        release = Release.load(bundle, model)
        if (framework := release.manifest["framework"]) not in self._measured:
            self._measured.add(framework)
            del release
            before = resident()
            release = Release.load(bundle, model)
        self._charges[tag] = max(resident() - before, files(bundle / "model"), self._charges.get(tag, 0))
        return release


def files(directory: Path) -> int:
    """The bytes of all files under it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def resident() -> int:
    """The bytes of this process that are in memory; 0 where the system does not say in this way."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Hand what was freed back to the system, where the C library can: glibc keeps it for itself otherwise."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
