"""Make a registered version again from what its bundle says of itself, and say item by item what came out equal.

The training set is joined anew from the partitions as they lie in the lake now, and trained on with the recorded
arguments, in a scratch directory: nothing is published or registered. What differs is explained by what is known to
have changed: the code, the libraries, the machine, the declaration, the partitions that were published since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.links import spec
from mlops_assets.links.training_set import known_by, point_in_time_rows
from mlops_assets.manifest import WHERE_AND_HOW, made_from, run_manifest, training_code
from mlops_assets.record import RECORD, file_hashes, trials_of
from mlops_assets.trainers import trainer_named
from mlops_assets.upstream import cutoff_time, partitions_read, tables_read, versions_read
from mlops_assets.workplace import workplace
from resources.hardware import NoSuchDeviceError, this_machine

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ModelPipeline
    from mlops_assets.records import Records
    from resources.lake import Lake

Document = dict[str, Any]
FEW = 5
MACHINE = ("python", "platform", "cpu_count", "memory_gb", "gpu")


@dataclass(frozen=True)
class Item:
    """One thing that was recorded, and what it is now; `equal` is None where that cannot be told."""

    what: str
    equal: bool | None
    recorded: Any
    now: Any
    why: str = ""


@dataclass(frozen=True)
class Reproduction:
    """What came of making a version again; `equal` says whether the model is the very same."""

    model: str
    version: str
    cutoff: str
    items: tuple[Item, ...]
    remarks: tuple[str, ...]

    @property
    def equal(self) -> bool:
        files = [item.equal for item in self.items if item.what.startswith("model file ")]
        return bool(files) and all(files)

    def document(self) -> Document:
        return {"equal": self.equal, **asdict(self)}


@dataclass(frozen=True)
class Recorded:
    """What a bundle says of itself; `record` is empty for one that was made before there was such a record."""

    bundle: Path
    manifest: Document
    record: Document

    @classmethod
    def of(cls, bundle: Path) -> Recorded:
        record = bundle / RECORD
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        return cls(bundle, manifest, json.loads(record.read_bytes()) if record.is_file() else {})


def reproduce(model: ModelPipeline, version: str, records: Records) -> Reproduction:
    """Make the version again. Raises UnknownModelVersionError, or what MLflow does when it is away."""
    recorded = Recorded.of(records.mlflow.download(model.registered_name, version))
    if not recorded.record:
        records.tell(f"Version {version} has no {RECORD}: the training arguments are those of today's declaration")
    cutoff = recorded.manifest["cutoff"]
    with workplace(f"reproduce-{model.registered_name}-{version}") as work:
        items = list(_items(model, cutoff, recorded, records, work.path))
    return Reproduction(model.id, version, cutoff, tuple(items), tuple(records.problems))


def _items(model: ModelPipeline, cutoff: str, recorded: Recorded, records: Records, scratch: Path) -> Iterator[Item]:
    from mlops_assets.training import train, training_arguments

    rows = scratch / "training_set.parquet"
    declared = training_arguments(model, cutoff_time(model, cutoff), rows, scratch / "out")
    yield from environment(recorded)
    yield from declaration(model, declared, recorded)
    frame = records.ask("the training set", rebuilt, model, cutoff, records.lake)
    yield training_set(model, cutoff, frame, recorded, records)
    if frame is None:
        return
    frame.write_parquet(rows)
    arguments = {**declared, **recorded.record.get("arguments", {}), "checkpoint": None}
    computed_on = records.ask("the device", device, recorded, arguments)
    if computed_on is not None:
        arguments["accelerator"], told_of_device = computed_on
        yield told_of_device
    before = made_from(declared)["threads"]
    if (threads := recorded.record.get("made_from", {}).get("threads", before)) != before:
        yield Item("threads", False, threads, before, "sums of floats may differ in their order")
    trained = records.ask("the training", train, arguments)
    if trained is None:
        yield Item("model", None, recorded.manifest["params"], None, "it could not be trained, see the remarks")
        return
    yield from model_items(trained, scratch / "out", recorded)


# -- what it was made with


def environment(recorded: Recorded) -> Iterator[Item]:
    """The code, the machine and the libraries."""
    then, now = recorded.manifest, run_manifest()
    dirty = then["git_dirty"] or now["git_dirty"]
    equal = None if dirty else then["git_commit"] == now["git_commit"]
    why = "there are changes that no commit holds: see the training code" if dirty else ""
    yield Item("git commit", equal, _commit(then), _commit(now), why)
    made = recorded.record.get("made_from", {})
    yield _item("training code", made.get("code"), training_code(), "files that a model depends on were edited")
    yield _item(
        "constraints.txt", then["constraints_sha256"], now["constraints_sha256"], "other packages are asked for"
    )
    for name in MACHINE:
        yield _item(name, then.get(name), now[name])
    yield from _each("package", then["packages"], {name: now["packages"].get(name) for name in then["packages"]})


def device(recorded: Recorded, arguments: Document) -> tuple[str, Item]:
    """The accelerator to train on again, which is the recorded one where it is here; and what that means."""
    then = recorded.manifest.get("device")
    wanted = then["kind"] if then else "cpu"  # all there was while none was recorded
    trainer = trainer_named(arguments["trainer"]["name"], **arguments["trainer"]["params"])
    try:
        found, why = trainer.device(wanted, this_machine()), ""
    except NoSuchDeviceError as problem:
        found, why = trainer.device("auto", this_machine()), f"floats are summed otherwise there: {problem}"
    now = f"{found.kind}: {found.name}"
    return found.kind, _item("device", f"{wanted}: {then['name']}" if then else None, now, why)


def declaration(model: ModelPipeline, declared: Document, recorded: Recorded) -> Iterator[Item]:
    """What is declared today against what the version was trained by; a reproduction follows the record."""
    then = recorded.record.get("arguments")
    now = json.loads(json.dumps({name: value for name, value in declared.items() if name not in WHERE_AND_HOW}))
    if then is None:
        yield Item("declaration", None, None, None, "the version does not say by which arguments it was trained")
    else:
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        why = f"{', '.join(changed)} changed; the recorded ones are used" if changed else ""
        yield Item("declaration", not changed, len(then), len(now), why)
    tables = {table.id: table.code_version for table in tables_read(model).values()}
    yield from _each("code version of", recorded.record.get("tables"), tables)


# -- the rows


def rebuilt(model: ModelPipeline, cutoff: str, lake: Lake) -> pl.DataFrame:
    """The training set of a cutoff, joined anew from the lake as it is. Raises NotMaterializedError."""
    wanted = partitions_read(model, cutoff)
    frames = {name: lake.scan(asset_key(table), wanted[name]) for name, table in tables_read(model).items()}
    spine = known_by(frames["spine"], cutoff_time(model, cutoff), model.split.window)
    return point_in_time_rows(model, spine, frames)


def training_set(
    model: ModelPipeline, cutoff: str, frame: pl.DataFrame | None, recorded: Recorded, records: Records
) -> Item:
    """Its content's hash; where that is another, what differs and which partitions were published since."""
    then = recorded.manifest["training_set"]["hash"]
    if frame is None:
        return Item("training set", None, then, None, "it could not be joined again, see the remarks")
    now = spec.data_version(frame).value
    if then == now:
        return Item("training set", True, then, now, f"{frame.height} rows")
    causes = [
        *changed_partitions(model, cutoff, recorded, records),
        *_rows_differing(model, cutoff, frame, then, records),
    ]
    return Item("training set", False, then, now, "; ".join(causes) or "nothing that Dagster was told of changed")


def changed_partitions(model: ModelPipeline, cutoff: str, recorded: Recorded, records: Records) -> Iterator[str]:
    """By table: the partitions whose data version is another now than when the training set was joined."""
    then = recorded.record.get("upstream")
    if then is None or records.instance is None:
        yield "which partitions changed is not known"
        return
    now = records.ask("Dagster's events", versions_read, model, cutoff, records.instance) or {}
    for table, versions in now.items():
        before = then.get(table, {})
        changed = sorted(one for one in {*versions, *before} if versions.get(one) != before.get(one))
        if changed:
            yield f"{table} changed in {_few(changed)}"


def _rows_differing(
    model: ModelPipeline, cutoff: str, frame: pl.DataFrame, then: str, records: Records
) -> Iterator[str]:
    """Against the rows that were trained on, if they still lie in the lake."""
    key = spec.link_key(model, "training_set")
    stored = records.ask("the stored training set", lambda: records.lake.scan(key, [cutoff]).collect())
    if stored is None or spec.data_version(stored).value != then:
        yield "the rows that were trained on are not in the lake any more"
        return
    yield told(differences(stored, frame, model.labels.key))


def differences(before: pl.DataFrame, now: pl.DataFrame, key: str) -> Document:
    """How two tables of unique keys differ: rows in one alone, rows that changed, and of which columns."""
    import polars as pl

    shared = [name for name in before.columns if name in now.columns and name != key]
    both = before.select(key, *shared).join(now.select(key, *shared), on=key, how="inner", suffix="__now")
    changed = {name: pl.col(name).ne_missing(pl.col(f"{name}__now").cast(before.schema[name])) for name in shared}
    counted = both.select(
        **{name: one.sum() for name, one in changed.items()}, __rows=pl.any_horizontal(*changed.values()).sum()
    )
    counts = counted.row(0, named=True)
    return {
        "only_before": before.height - both.height,
        "only_now": now.height - both.height,
        "rows": counts.pop("__rows"),
        "columns": {name: count for name, count in counts.items() if count},
        "columns_in_one": sorted({*before.columns} ^ {*now.columns}),
    }


def told(found: Mapping[str, Any]) -> str:
    columns = _few([f"{name} ({count})" for name, count in found["columns"].items()])
    parts = [
        f"{found['rows']} rows differ, in {columns}" if found["rows"] else "",
        f"{found['only_before']} rows are gone" if found["only_before"] else "",
        f"{found['only_now']} rows are new" if found["only_now"] else "",
        f"columns {_few(found['columns_in_one'])} are in one of them" if found["columns_in_one"] else "",
    ]
    return ", ".join(part for part in parts if part) or "the same rows in another order or of other types"


# -- the model


def model_items(trained: Document, out: Path, recorded: Recorded) -> Iterator[Item]:
    """What the search tried, the parameters, what the model says, its files."""
    record, bundle = recorded.record, out / "bundle"
    yield _trials(record.get("trials"), trials_of(out))
    yield _item("parameters", recorded.manifest["params"], trained["params"])
    golden = json.loads((recorded.bundle / "golden.json").read_bytes())
    apart = _apart(golden, trained, bundle)
    yield Item(
        "golden predictions", apart == 0, len(golden["rows"]), len(golden["rows"]), f"apart by {apart:.3g} at most"
    )
    for part, then in record.get("metrics", {}).items():
        now = trained["metrics"][part]
        worst = max((name for name in then), key=lambda name: abs(then[name] - now[name]))
        yield Item(
            f"{part} metrics", then == now, then[worst], now[worst], "" if then == now else f"{worst} differs most"
        )
    before, again = file_hashes(recorded.bundle / "model"), file_hashes(bundle / "model")
    for name in sorted({*before, *again}):
        yield Item(f"model file {name}", before.get(name) == again.get(name), before.get(name), again.get(name))


def _trials(then: list[Document] | None, now: list[Document]) -> Item:
    if then is None:
        return Item("trials", None, None, len(now), "the version does not say what was tried")
    first = next((at for at, pair in enumerate(zip(then, now, strict=False)) if pair[0] != pair[1]), None)
    why = f"the first that differs is {first}: {then[first]}, now {now[first]}" if first is not None else ""
    return Item("trials", then == now, len(then), len(now), why)


def _apart(golden: Document, trained: Document, bundle: Path) -> float:
    """The largest difference between what the version said of its golden rows and what the new model says."""
    import numpy as np

    from mlops_assets.input_schema import InputError, InputSchema
    from mlops_assets.trainers import load_predictor

    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_bytes()))
    try:
        x = schema.encode(golden["rows"])
    except InputError:  # the new model knows other inputs
        return math.inf
    again = load_predictor(trained["framework"], bundle / "model")(x)
    return float(np.abs(again - np.array(golden["predictions"])).max())


# -- words


def _item(what: str, then: Any, now: Any, why: str = "") -> Item:
    equal = None if then is None and now is not None else then == now
    return Item(what, equal, then, now, why if equal is False else "")


def _each(what: str, then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[Item]:
    """One item for all where they are equal; else one for each that differs."""
    if then is None:
        yield Item(f"{what} ...", None, None, len(now), "not recorded")
        return
    differing = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if not differing:
        yield Item(f"{what} ...", True, len(then), len(now), f"all {len(now)} are equal")
    for name in differing:
        yield Item(f"{what} {name}", False, then.get(name), now.get(name))


def _commit(manifest: Mapping[str, Any]) -> str:
    return f"{str(manifest['git_commit'])[:12]}{' and changes' if manifest['git_dirty'] else ''}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
