"""What a directory holds, by hash: `<directory>.sha256` beside it, which `sha256sum -c` understands.

Whoever reads a model reads it through `verified`: a file that was changed, lost or added since is refused by name.
Imports nothing of ours: the serving process uses it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import Self

SUFFIX = ".sha256"
LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)")
WRITABLE = 0o222


class DamagedArtifactError(RuntimeError):
    """Files are not what was saved."""

    @classmethod
    def of(cls, directory: Path, damage: Mapping[str, str]) -> Self:
        named = "; ".join(f"{path} {what}" for path, what in damage.items())
        return cls(
            f"{directory} is not what was saved: {named}. Nothing of it was used. Put the files back from a copy, or "
            "go on with another version; `mlops artifacts verify` names everything that is damaged."
        )


class UnreadableManifestError(ValueError):
    """A manifest is no list of hashes and files."""

    @classmethod
    def of(cls, what: object, line: str) -> Self:
        return cls(
            f"{what} has a line that is no hash and file: {line[:200]!r}. Put it back from a copy, or train again."
        )


@dataclass(frozen=True)
class Manifest:
    """The hash of each file by its path in the directory."""

    hashes: Mapping[str, str]

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Of the files as they are now; they are streamed."""
        return cls({path: file_hash(directory / path) for path in _files(directory)})

    @classmethod
    def parse(cls, text: str, what: object) -> Self:
        """Raises UnreadableManifestError."""
        return cls(dict(_entry(line, what) for line in text.splitlines()))

    @classmethod
    def beside(cls, directory: Path) -> Self | None:
        """The one that a directory was published with; None for what is older than manifests."""
        path = manifest_path(directory)
        return cls.parse(path.read_text(), path) if path.is_file() else None

    def text(self, name: str) -> str:
        return "".join(f"{value}  {name}/{path}\n" for path, value in sorted(self.hashes.items()))

    @property
    def digest(self) -> str:
        """One hash of everything: names and contents, whatever the directory is called."""
        return sha256(self.text("").encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Beside the directory, whole or not at all; written last, it says that the directory is complete."""
        path = manifest_path(directory)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(self.text(directory.name))
        os.replace(beside, path)

    def damage(self, directory: Path) -> dict[str, str]:
        """By path, how a directory differs from this; nothing where it does not."""
        there = set(_files(directory))
        changed = {
            path: "was changed"
            for path in sorted(there & set(self.hashes))
            if file_hash(directory / path) != self.hashes[path]
        }
        missing = dict.fromkeys(sorted(set(self.hashes) - there), "is missing")
        return changed | missing | dict.fromkeys(sorted(there - set(self.hashes)), "was added")


def verified(directory: Path) -> Path:
    """The directory, whose files are those of the manifest beside it, if it has one. Raises DamagedArtifactError."""
    manifest = Manifest.beside(directory)
    if manifest is not None and (damage := manifest.damage(directory)):
        raise DamagedArtifactError.of(directory, damage)
    return directory


def manifest_path(directory: Path) -> Path:
    return directory.with_name(directory.name + SUFFIX)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def placed(source: Path, target: Path, manifest: Manifest) -> None:
    """Put a directory at `target`, with its manifest; files that nobody may write to are shared, others copied."""
    for path in manifest.hashes:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        _share(source / path, target / path)
    manifest.write(target)


def _share(source: Path, target: Path) -> None:
    """A file of the object store never changes, and may have one more name; any other could, and is copied."""
    status = source.stat()
    if status.st_nlink > 1 and not status.st_mode & WRITABLE:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links, or too many of them
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _entry(line: str, what: object) -> tuple[str, str]:
    found = LINE.fullmatch(line)
    named = PurePosixPath(found[2] if found else "")
    path = PurePosixPath(*named.parts[1:])
    if found is None or named.is_absolute() or ".." in named.parts or not path.parts:
        raise UnreadableManifestError.of(what, line)
    return path.as_posix(), found[1]
