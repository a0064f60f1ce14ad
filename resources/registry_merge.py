"""Two changes to one Feast registry, made apart, put together: object by object.

A writer knows the registry it read (`base`) and the one it made (`mine`); meanwhile somebody else wrote `theirs`. What
only one of them changed is taken from that one. The rule that must never break: no object that anybody registered is
lost, and one that both changed is never decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from feast.protos.feast.core.Registry_pb2 import Registry

TIMES = ("created_timestamp", "last_updated_timestamp")


class RegistryConflictError(RuntimeError):
    """Two writers changed the same object of the registry at once."""

    @classmethod
    def of(cls, kind: str, names: Sequence[str]) -> Self:
        return cls(f"Somebody else changed {kind} {', '.join(names)} of the registry meanwhile. Apply again.")


def merged(base: Registry, mine: Registry, theirs: Registry) -> Registry:
    """`theirs` with what `mine` changed since `base`; raises RegistryConflictError where both changed an object."""
    result = Registry()
    result.CopyFrom(theirs)
    for field in Registry.DESCRIPTOR.fields:
        if field.message_type is not None and field.is_repeated:
            _merge(field.name, *(getattr(one, field.name) for one in (base, mine, theirs, result)))
    _merge("infra", *(one.infra.infra_objects for one in (base, mine, theirs, result)))
    return result


def _merge(kind: str, base: Any, mine: Any, theirs: Any, result: Any) -> None:
    before, ours, held = _by_name(base), _by_name(mine), _by_name(theirs)
    changed = [name for name in {**before, **ours} if not _same(before.get(name), ours.get(name))]
    contested = [name for name in changed if not _same(before.get(name), held.get(name))]
    if lost := [name for name in contested if not _same(ours.get(name), held.get(name))]:
        raise RegistryConflictError.of(kind, [str(name) for name in lost])
    kept = {**held, **{name: ours[name] for name in changed if name in ours}}
    del result[:]
    result.extend(item for name, item in kept.items() if name in ours or name not in changed)


def _by_name(items: Any) -> dict[Any, Any]:
    return {_name(item): item for item in items}


def _name(item: Any) -> Any:
    """Feast's objects are known by project and name; what has no name, by what it says."""
    spec = getattr(item, "spec", item)
    name = getattr(spec, "name", "")
    version = getattr(item, "version_number", "")
    project = getattr(spec, "project", "") or getattr(item, "project", "")
    return (project, name, version) if name or project else item.SerializeToString(deterministic=True)


def _same(one: Any, other: Any) -> bool:
    return _said(one) == _said(other)


def _said(item: Any) -> bytes | None:
    """Without the times at which Feast made or changed it."""
    if item is None:
        return None
    timeless = type(item)()
    timeless.CopyFrom(item)
    meta: Any = getattr(timeless, "meta", None)
    for name in TIMES if meta is not None else ():
        if name in meta.DESCRIPTOR.fields_by_name:
            meta.ClearField(name)
    return timeless.SerializeToString(deterministic=True)
