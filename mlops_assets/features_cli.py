"""`mlops features`: find a feature, see what it is, who uses it and what a change would reach; refuse a breaking one.

Every command prints tables for people, and with `--json` the same answer for machines. Nothing here changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_assets.terminal import print_table

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.catalog import Catalog
    from mlops_assets.discovery.card import Document, Stores
    from mlops_assets.discovery.contract import Breach, Reader

features = typer.Typer(help="The feature views: find one, look at it, see what depends on it.")

View = Annotated[str, typer.Argument(help="The view, as <team>/<name>")]
Json = Annotated[bool, typer.Option("--json", help="For machines")]
SHOWN = 50
WHAT_TO_DO = (
    "Keep them declared as they were, beside what is new, until no model in use reads them: let the model read the new "
    "features, train and release it (dg launch --job {jobs}), then remove the old ones."
)


@features.callback(invoke_without_command=True)
def listed(context: typer.Context, as_json: Json = False) -> None:
    """The feature views: find one, look at it, see what depends on it. Without a command, all of them."""
    if context.invoked_subcommand is not None:
        return
    from mlops_assets.catalog import gather
    from mlops_assets.discovery.card import used_by
    from mlops_assets.discovery.contract import views

    catalog = gather()
    if as_json:
        _print({
            view.id: {"kind": view.kind, "features": list(view.schema), "used_by": list(used_by(catalog, view))}
            for view in views(catalog).values()
        })  # fmt: skip
        return
    rows = [
        (view.id, ", ".join(view.join_keys), view.ttl or "none", len(view.schema), ", ".join(used_by(catalog, view)))
        for view in catalog.views
    ]
    print_table("Feature views", ["view", "keys", "ttl", "features", "used by"], rows)
    computed = [
        (view.id, ", ".join(view.inputs), len(view.schema), ", ".join(used_by(catalog, view)))
        for view in catalog.on_demand.values()
    ]
    if computed:
        print_table("Computed on demand", ["view", "from", "features", "used by"], computed)


@features.command()
def search(
    words: Annotated[list[str], typer.Argument(help="All of them must match; a misspelt one finds the nearest")],
    as_json: Json = False,
) -> None:
    """Views and features by name, meaning, unit, owner or entity; best first."""
    from dataclasses import asdict

    from mlops_assets.catalog import gather
    from mlops_assets.discovery.card import entries
    from mlops_assets.discovery.search import Index

    text = " ".join(words)
    found = Index(entries(gather())).search(text)
    if as_json:
        entries_found = [
            {name: value for name, value in asdict(item).items() if name != "words"} for item in found.entries
        ]
        _print({"found": entries_found, "near": found.near})
        return
    if not found.entries:
        near = f"Near: {', '.join(found.near)}" if found.near else "All views: mlops features"
        typer.echo(f"Nothing has all words of {text!r}. {near}")
        return
    rows = [(item.id, item.type, item.meaning, item.owner, ", ".join(item.used_by)) for item in found.entries[:SHOWN]]
    print_table(f"{len(found.entries)} found", ["name", "type", "meaning", "owner", "used by"], rows)
    if len(found.entries) > SHOWN:
        typer.echo(f"{len(found.entries) - SHOWN} more; say more words, or --json for all.")


@features.command()
def show(view: View, as_json: Json = False) -> None:
    """A view's schema, freshness, statistics, and the models, Bentos and endpoints that use it."""
    from mlops_assets.discovery.card import asked, shown

    stores = _stores()
    chosen, _ = asked(stores.catalog, view)
    with _judged(), _instance() as instance:
        document = shown(chosen, stores, instance)
    if as_json:
        _print(document)
    else:
        _show(document)


@features.command()
def impact(
    view: Annotated[str, typer.Argument(help="<team>/<view>, or <team>/<view>:<feature>")], as_json: Json = False
) -> None:
    """What a view or a feature is made from, and everything that rests on it, to the endpoints and reports."""
    from mlops_assets.discovery.card import asked
    from mlops_assets.discovery.impact import impact as impact_of

    stores = _stores()
    with _judged():
        document = impact_of(*asked(stores.catalog, view), stores)
    if as_json:
        _print(document)
    else:
        _show_impact(document)


@features.command()
def parity(
    model: Annotated[str, typer.Argument(help="The model, as <team>/<name>")],
    now: Annotated[bool, typer.Option(help="Look sampled events up now, though answers are logged")] = False,
    as_json: Json = False,
) -> None:
    """Replay a model's requests offline: each feature that the endpoint reads otherwise than training would."""
    from mlops_assets.catalog import gather
    from mlops_assets.parity.report import COLUMNS, feature_parity, here

    pipeline = gather().model(model)
    report = here(pipeline, now_only=now)
    verdict = feature_parity(report, pipeline.parity.at_most)
    if as_json:
        _print(
            {"compared": report.compared, **report.numbers(), "differences": [one.cells for one in report.differences]}
        )
    elif report.differences:
        print_table(report.compared, COLUMNS, [one.cells for one in (*report.skewed, *report.late)][:SHOWN])
    else:
        typer.echo(f"{report.compared}: no difference")
    raise typer.Exit(0 if verdict.passed else 1)


@features.command()
def rebuild(
    view: View,
    as_of: Annotated[str | None, typer.Option(help="A moment as ISO time with a zone; by default all there is")] = None,
) -> None:
    """Empty a view's online store and fill it from its offline rows alone; readers find nothing meanwhile."""
    from mlops_assets.catalog import gather
    from mlops_assets.links.snapshot import rebuild_online
    from resources.environment import resources_for

    stores, moment = resources_for(), _moment(as_of)
    rows = rebuild_online(stores["feast"], stores["lake"], gather().view(view), moment)
    typer.echo(f"{view}: {rows.height} keys online, as of {moment or 'the newest row'}")


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(f"{text} is no ISO time. Write one, e.g. 2013-04-01T00:00:00+00:00.") from error
    if moment and moment.tzinfo is None:
        raise typer.BadParameter(f"{text} is a time without a zone. Write one, e.g. 2013-04-01T00:00:00+00:00.")
    return moment


@features.command()
def adopt(path: Annotated[Path, typer.Argument(help="The folder of an existing feature_store.yaml")]) -> None:
    """Read the registry of an existing Feast repository, and say how its views become assets."""
    from mlops_assets.adoption import adopt as read

    typer.echo(read(path))


@features.command()
def contract() -> None:
    """What champions and released versions read, as JSON, for `check --contract` where there is no registry."""
    from mlops_assets.discovery.contract import readers, to_json

    stores = _stores()
    with _judged():
        _print(to_json(readers(stores.catalog, stores.promotion)))


@features.command()
def check(
    contract_file: Annotated[
        Path | None,
        typer.Option("--contract", exists=True, dir_okay=False, help="A file that `contract` wrote; else the registry"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Exit 1 where a champion or a release reads a feature that is not declared as it was; 2 if that is unknown."""
    from mlops_assets.discovery.contract import breaches, to_json

    with _judged():
        catalog, found = _readers(contract_file)
    broken = breaches(found, catalog)
    if as_json:
        _print({
            "readers": to_json(found)["readers"],
            "breaches": [_plain(breach) for breach in broken],
        })  # fmt: skip
    else:
        _show_breaches(broken, found)
    raise typer.Exit(1 if broken else 0)


def _readers(contract_file: Path | None) -> tuple[Catalog, list[Reader]]:
    from mlops_assets.catalog import gather
    from mlops_assets.discovery.contract import from_json, readers

    if contract_file is not None:
        return gather(), from_json(contract_file)
    stores = _stores()
    return stores.catalog, readers(stores.catalog, stores.promotion)


@contextmanager
def _judged() -> Iterator[None]:
    """What cannot be read is one line, and exit status 2: it is not known whether something is broken."""
    from mlops_assets.discovery.contract import UnreadableContractError, UnreadablePlanError

    try:
        yield
    except (UnreadableContractError, UnreadablePlanError) as problem:
        typer.secho(f"mlops: {problem}", fg="red", err=True)
        raise typer.Exit(2) from problem


def _stores() -> Stores:
    """The declarations, and the stores of this environment."""
    from mlops_assets.catalog import gather
    from mlops_assets.discovery.card import Stores
    from mlops_assets.promotion import Promotion
    from resources.environment import resources_for

    resources = resources_for()
    return Stores(gather(), resources["lake"], Promotion.of(resources))


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    import dagster as dg

    from resources.environment import prepare_home

    prepare_home()
    with dg.DagsterInstance.get() as instance:
        yield instance


# -- for people


def _show(document: Document) -> None:
    typer.echo(f"{document['view']} ({document['kind']}, {', '.join(document['owners'])}): {document['description']}")
    if "computed_from" in document:
        typer.echo(f"computed when asked for, from: {', '.join(document['computed_from'])}")
    else:
        _show_rows(document)
    numbers = document.get("statistics", {}).get("features", {})
    print_table(
        "Features",
        ["feature", "type", "unit", "meaning", "statistics"],
        [
            (name, field["type"], field.get("unit", ""), field.get("description", ""), _numbers(numbers.get(name, {})))
            for name, field in document["schema"].items()
        ],
    )
    _show_uses(document["used_by"], len(document["schema"]))


def _show_rows(document: Document) -> None:
    keys = ", ".join(f"{name} ({item['type']}, {item['entity']})" for name, item in document["keys"].items())
    typer.echo(f"keys: {keys or 'none'}; ttl: {_lasting(document['ttl_seconds'])}")
    for face, facts in document["freshness"].items():
        typer.echo(f"{face}: {_freshness(facts)}")
    numbers = document["statistics"]
    if "none_because" in numbers:
        typer.echo(f"statistics: none. {numbers['none_because']}")
        return
    names = numbers["partitions"]
    over = f"{names[0]} to {names[-1]} ({len(names)} partitions)" if names else "the whole table"
    typer.echo(f"statistics: over {over}, {numbers['rows']} rows")


def _freshness(facts: Mapping[str, Any]) -> str:
    """Two clauses: how old the newest event is, and when it was last published."""
    if facts["newest_event"] is None:
        newest = "no event"
    else:
        seen = "within its ttl" if facts["within_ttl"] else "older than its ttl"
        newest = f"newest event {facts['newest_event']}, {_lasting(facts['age_seconds'])} ago, {seen}"
    if facts["last_materialized"] is None:
        return f"{newest}; never materialized"
    details = [f"{name} {facts[name]}" for name in ("partition", "as_of") if name in facts]
    standing = [f"{facts['policy']} by its freshness policy"] if "policy" in facts else []
    return "; ".join([newest, ", ".join([f"materialized {facts['last_materialized']}", *details, *standing])])


def _show_uses(uses: Mapping[str, Any], every: int) -> None:
    named = [("model", name, items) for name, items in uses["models"].items()]
    named += [("Bento", name, items) for name, items in uses["bentos"].items()]
    named += [
        (f"{item['role']}, {item['weight']} %", f"{item['route']} {item['release']}", item["features"])
        for item in uses["endpoints"]
    ]
    rows = [(what, name, f"all {every}" if len(read) == every else ", ".join(read)) for what, name, read in named]
    if rows:
        print_table("Used by", ["what", "name", "features"], rows)
    else:
        typer.echo("used by: no model")


def _show_impact(document: Document) -> None:
    typer.echo(f"{document['view']}: {', '.join(document['features'])}")
    for title, part in (("Made from", "made_from"), ("Tables that rest on it", "tables")):
        rows = [(item["table"], item["kind"], ", ".join(item["columns"])) for item in document[part]]
        if rows:
            print_table(title, ["table", "kind", "columns"], rows)
        else:
            typer.echo(f"{title}: none")
    for model in document["models"]:
        print_table(model["model"], ["what", "which", "reads"], _reached(model))
    if not document["models"]:
        typer.echo("No model rests on it.")
    if document["untraced"]:
        typer.echo(
            f"Taken to rest on all that they read, since they cannot be traced: {', '.join(document['untraced'])}"
        )


def _reached(model: Document) -> Iterator[tuple[str, str, str]]:
    if model["reads"]:
        yield "declaration", model["model"], ", ".join(model["reads"])
    for item in model["versions"]:
        facts = [f"{name} {item[name]}" for name in ("cutoff", "gate") if name in item]
        what = "champion" if item["champion"] else "candidate"
        yield what, f"version {item['version']} ({', '.join(facts)})", ", ".join(item["features"])
    for tag, columns in model["bentos"].items():
        yield "Bento", tag, ", ".join(columns)
    for item in model["endpoints"]:
        yield f"endpoint, {item['role']}", f"{item['route']} {item['release']}", f"{item['weight']} % of the traffic"
    for key in model["assets"]:
        yield "asset", key, ""


def _show_breaches(broken: Sequence[Breach], found: Sequence[Reader]) -> None:
    for breach in broken:
        typer.echo(f"broken: {breach}")
    if broken:
        models = dict.fromkeys(breach.reader.model for breach in broken)
        typer.echo(WHAT_TO_DO.format(jobs=" or ".join(f"{name.replace('/', '__')}__train" for name in models)))
        return
    told = ", ".join(map(str, found)) or "no champion and no release"
    typer.echo(f"Everything that models in use read is declared as they read it: {told}.")


def _plain(breach: Breach) -> Document:
    return {
        "view": breach.view,
        "features": breach.features,
        "change": breach.change,
        "model": breach.reader.model,
        "version": breach.reader.version,
        "roles": breach.reader.roles,
    }


def _numbers(numbers: Mapping[str, Any]) -> str:
    """The null share first; four digits are enough for a look."""
    return ", ".join(f"{name} {_short(value)}" for name, value in numbers.items() if value is not None)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lasting(seconds: float | None) -> str:
    from datetime import timedelta

    return "none" if seconds is None else str(timedelta(seconds=seconds))


def _print(document: Any) -> None:
    """JSON in one order, so that equal answers are equal texts."""
    typer.echo(json.dumps(document, indent=2, sort_keys=True))
