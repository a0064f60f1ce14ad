"""Files by hash on this machine: `<root>/<first two digits>/<sha256>`, read-only, each content once.

Whoever uses an object has a hard link to it, and the number of links says whether anybody does: no reference is
written down that a kill could leave behind. An object appears by rename, when all of it is on disk. Collecting may
race with a writer: whoever finds its object gone writes it again, and a file that has a link is never lost.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from resources.artifacts.manifest import file_hash

LARGE = 16 << 20
ATTEMPTS = 5
NOT_HERE = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS})  # no hard links, or not to there
SETTLED_SECONDS = 60.0  # an object is not collected while its writer may be about to link it
ABANDONED_SECONDS = 86_400.0

logger = logging.getLogger(__name__)


class VanishingObjectError(RuntimeError):
    """Something deletes objects as fast as they are written."""

    @classmethod
    def of(cls, root: Path, source: Path) -> Self:
        return cls(
            f"{source} was stored under {root} {ATTEMPTS} times, and was deleted before it could be linked. "
            "End what deletes files there, and try again."
        )


@dataclass(frozen=True)
class Usage:
    """What is stored, what it stands for by its links, and how much of it nothing links to."""

    objects: int = 0
    stored_bytes: int = 0
    links: int = 0
    linked_bytes: int = 0
    unused: int = 0
    unused_bytes: int = 0


@dataclass(frozen=True)
class ObjectStore:
    """The objects under `root`; links to them must lie on the same file system, or are copies."""

    root: Path

    def place(self, source: Path, target: Path) -> str:
        """Give the content of `source` the name `target` too, stored once; returns its hash."""
        for _ in range(ATTEMPTS):
            found = self.keep(source)
            try:
                self._link(found, target)
            except FileNotFoundError:  # collected between the two
                continue
            return found.name
        raise VanishingObjectError.of(self.root, source)

    def keep(self, source: Path) -> Path:
        """The object of a file's content, which is written unless an intact one is there."""
        if self._is_new(source):
            return self._write(source)
        known = self.path(file_hash(source))
        if known.is_file():
            if self.intact(known):
                return known
            logger.warning("Object %s was damaged and is written again; older links to it stay damaged.", known)
        return self._write(source)

    def path(self, content: str) -> Path:
        return self.root / content[:2] / content

    def intact(self, path: Path) -> bool:
        """Is an object what its name says?"""
        try:
            return file_hash(path) == path.name
        except OSError:
            return False

    def damaged(self) -> list[Path]:
        """The objects that are not what their names say; every byte is read."""
        return [path for path in self._objects() if not self.intact(path)]

    def usage(self) -> Usage:
        total = Usage()
        for _, status in _there(self._objects()):
            total = _added(total, status)
        return total

    def collect(self, settled: float = SETTLED_SECONDS) -> Usage:
        """Delete the objects that nothing links to; what was deleted."""
        gone, now = Usage(), time.time()
        for path, status in _there(self._objects()):
            if status.st_nlink == 1 and now - status.st_ctime >= settled:
                path.unlink(missing_ok=True)
                gone = _added(gone, status)
        for path, status in _there(self._incoming().glob("*")):
            if now - status.st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        return gone

    def _is_new(self, source: Path) -> bool:
        """A large file of a size that no object has need not be read once only to learn that it is not there."""
        size = source.stat().st_size
        return size > LARGE and all(status.st_size != size for _, status in _there(self._objects()))

    def _write(self, source: Path, *, anew: bool = False) -> Path:
        """Copy a file, named for what the copy holds: a source that changes meanwhile harms nobody.

        The system copies without showing us the bytes, and they are hashed afterwards: a third of the time of a core
        that a loop of reading, hashing and writing takes.
        """
        self._incoming().mkdir(parents=True, exist_ok=True)
        beside = self._incoming() / uuid4().hex
        try:
            shutil.copyfile(source, beside)
            final = self.path(file_hash(beside))
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.chmod(0o444)
            final.parent.mkdir(exist_ok=True)
            self._publish(beside, final, anew)
        finally:
            beside.unlink(missing_ok=True)
        return final

    def _publish(self, beside: Path, final: Path, anew: bool) -> None:
        """Of two writers at once the first one's file stays, since it may be linked already."""
        try:
            if not anew:
                os.link(beside, final)
                return
        except FileExistsError:
            if self.intact(final):
                return
        except OSError as problem:
            if problem.errno not in NOT_HERE:
                raise
        os.replace(beside, final)

    def _link(self, found: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            self._link_or_copy(found, beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def _link_or_copy(self, found: Path, target: Path) -> None:
        try:
            os.link(found, target)
        except OSError as problem:
            if problem.errno == errno.EMLINK:  # ext4 gives a file 65,000 names: another copy of it begins again
                os.link(self._write(found, anew=True), target)
            elif problem.errno in NOT_HERE:
                shutil.copy(found, target)
            else:
                raise

    def _objects(self) -> Iterator[Path]:
        return self.root.glob("[0-9a-f][0-9a-f]/*")

    def _incoming(self) -> Path:
        return self.root / "incoming"


def _there(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Those that nobody deleted since they were listed."""
    for path in paths:
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue


def _added(total: Usage, status: os.stat_result) -> Usage:
    links, size = status.st_nlink - 1, status.st_size
    return Usage(
        total.objects + 1,
        total.stored_bytes + size,
        total.links + links,
        total.linked_bytes + links * size,
        total.unused + (links == 0),
        total.unused_bytes + (size if links == 0 else 0),
    )
