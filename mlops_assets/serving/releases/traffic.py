"""Which release answers which rows: the same keys get the same variant for as long as the weights stand.

A key's bucket is a hash, so that every worker of every process sends it the same way without asking anybody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from mlops_assets.serving.bundle import Release
from mlops_assets.serving.wire.problems import shown
from resources.releases import Variant


class Columns(Protocol):
    """What a caller sent, before any release has judged it; `mlops_assets.serving.wire.raw.Raw` is one."""

    @property
    def size(self) -> int: ...

    def column(self, name: str, /) -> Sequence[Any]:
        """A value a row, None where a row lacks it."""
        ...


Part = tuple[Variant, Release, Sequence[int] | None]
"""A variant, its release, and the places of the rows that are theirs; None for all rows."""


@dataclass(frozen=True)
class Traffic:
    """The variants that answer, challengers first, each with its release; the champion takes what is left."""

    shares: tuple[tuple[Variant, Release], ...]

    @property
    def champion(self) -> Release:
        return self.shares[-1][1]

    @cached_property
    def quick(self) -> bool:
        """May a small request be answered on the event loop, whichever release it falls to?"""
        return all(release.quick for _, release in self.shares)

    def split(self, model: str, raw: Columns) -> Sequence[Part]:
        """Which variant answers which rows, by the entity keys of the champion's plan; in the order of the shares."""
        if len(self.shares) == 1:
            return self._whole[0]
        if raw.size == 1:
            return self._whole[self._share(self._bucket(model, [raw.column(name)[0] for name in self._keys]))]
        places: list[list[int]] = [[] for _ in self.shares]
        for place, keys in enumerate(zip(*map(raw.column, self._keys), strict=True)):
            places[self._share(self._bucket(model, keys))].append(place)
        if raw.size in map(len, places):
            return self._whole[next(at for at, rows in enumerate(places) if rows)]
        return [(*share, rows) for share, rows in zip(self.shares, places, strict=True) if rows]

    def _share(self, bucket: float) -> int:
        """Challengers hold the low buckets, so that who is in a canary stays in it as it grows."""
        for at, (variant, _) in enumerate(self.shares[:-1]):
            if bucket < variant.weight:
                return at
            bucket -= variant.weight
        return len(self.shares) - 1

    @staticmethod
    def _bucket(model: str, keys: Sequence[Any]) -> float:
        """A row that names no key has nothing to stick to: it is drawn, or all such rows would go one way."""
        if keys.count(None) == len(keys):
            return random.random() * 100  # noqa: S311  a draw, not a secret
        return bucket_of(model, keys)

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return self.champion.plan.join_keys

    @cached_property
    def _whole(self) -> Sequence[Sequence[Part]]:
        """What `split` says where one share gets all rows, made once."""
        return [[(variant, release, None)] for variant, release in self.shares]


def bucket_of(model: str, keys: Sequence[Any]) -> float:
    """A number in [0, 100), even over keys, the same in every process and on every day.

    `keys` may be what no release has judged yet; of what JSON has no word for, its text counts, or the
    beginning of it: its text may be of any depth.
    """
    try:
        said = orjson.dumps([model, *keys])
    except TypeError:
        said = repr([*map(shown, [model, *keys])]).encode(errors="backslashreplace")
    digest = blake2b(said, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
