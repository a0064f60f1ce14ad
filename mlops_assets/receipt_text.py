"""Receipts, and what used a partition, as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from mlops_assets.records import Document
from mlops_assets.terminal import print_table

UNKNOWN = "not known"


def show_receipt(receipt: Document) -> None:
    """One line a link of the chain, then the rows and the values that the answer was made of."""
    for name, told in _chain(receipt):
        typer.echo(f"{name:13} {told}")
    request, views = receipt["request"], {view["view"]: view for view in receipt["views"]}
    made_of = receipt["training_set"].get("made_of", {})
    unused = {fallback["view"]: fallback for fallback in request["fallbacks"]}
    if views or unused or made_of:
        columns = ["table", "row of", "partition", "published by", "trained on", "published by"]
        made_by = receipt["training_set"].get("made_by", {})
        names = dict.fromkeys([*views, *unused, *made_of])
        rows = [
            (name, *_row(views.get(name), unused.get(name)), _span(made_of.get(name, {})), _runs(made_by.get(name, [])))
            for name in names
        ]
        print_table("Rows it was made of", columns, rows)
    print_table("Values it was made of", ["input", "value"], request["inputs"].items())
    _show_remarks(receipt["remarks"])


def _chain(receipt: Document) -> Iterator[tuple[str, str]]:
    request, release, model = receipt["request"], receipt["release"], receipt["model"]
    training = receipt["training_set"]
    yield "request", f"{request['request_id']} to {request['model']} about {request['at']}{_words(request['keys'])}"
    yield (
        "answer",
        f"{request['prediction']}{_words(request['outputs'])}, in {request['latency_ms']} ms, {_who(request)}",
    )
    yield "release", _release(release) if release else UNKNOWN
    yield "Bento", f"{receipt['bento']['tag']} at {receipt['bento']['path'] or 'no place, it was deleted'}"
    yield "model", f"{model['model']} version {model['version']}{_metric(model['metric'])}"
    yield "MLflow run", _joined(model["mlflow_run_id"], model["mlflow_url"])
    yield (
        "trained by",
        _joined(_run(model["dagster_run_id"]), f"commit {model['git_commit']}" if model["git_commit"] else ""),
    )
    if training:
        rows = f", {training['rows']} rows" if "rows" in training else ""
        what = f"{training['asset']} [{training['partition']}], content {training['hash'] or UNKNOWN}{rows}"
        yield "training set", f"{what}, {_run(training.get('dagster_run_id'))}"


def _who(request: Mapping[str, Any]) -> str:
    instead = f" instead of {request['instead_of']}, which failed" if request["instead_of"] else ""
    return f"by the {request['variant']}{instead}, logged at {request['logged_at']}"


def _release(release: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{v['role']} version {v['version']} {v['weight']} %" for v in release["traffic"])
    did = f"{release['action']!r} by {release['by']} at {release['at']} ({release['why']})"
    return f"revision {release['revision']}: {shares}; {did}"


def _metric(metric: Mapping[str, Any] | None) -> str:
    return f", {metric['name']} {metric['holdout']:.4f} on its holdout" if metric else ""


def _row(view: Mapping[str, Any] | None, fallback: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """The row used, where it lies and who published it; or why there was none."""
    if view is not None:
        return view["event_time"], view.get("partition", UNKNOWN), _runs([view.get("dagster_run_id")])
    if fallback is not None:
        return f"none: {fallback['reason']}, {fallback['used']} instead", "", ""
    return "", "", ""


def _span(partitions: Mapping[str, int]) -> str:
    names = sorted(partitions)
    if not names:
        return ""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


def _run(run_id: str | None) -> str:
    return f"run {run_id}" if run_id else f"run {UNKNOWN}"


def _runs(run_ids: Sequence[str | None]) -> str:
    """By the part of an id that Dagster's pages show."""
    short = [run_id[:8] if run_id else UNKNOWN for run_id in run_ids]
    return f"{', '.join(short[:3])}{' ...' if len(short) > 3 else ''}"


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part) or UNKNOWN


def _words(values: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in values.items())})" if values else ""


def show_touched(touched: Document) -> None:
    """The models that used the partition, in two tables, and the tables that were made from it."""
    here = f"{touched['table']} [{touched['partition']}]"
    for table, partitions in touched["feeds"].items():
        typer.echo(f"{here} feeds {table}: {', '.join(partitions[:5])}{' ...' if len(partitions) > 5 else ''}")
    print_table(
        f"Training sets that used {here}",
        ["model", "cutoff", "rows", "versions", "Bentos", "released"],
        [row for model in touched["models"] for row in _trained(model)],
    )
    print_table(
        f"Answers that used {here}",
        ["model", "day", "release", "version", "variant", "answers", "request ids"],
        [
            (model["model"], *(one[name] for name in ("day", "release", "version", "variant", "answers")), _some(one))
            for model in touched["models"]
            for one in model["answers"]
        ],
    )
    _show_remarks(touched["remarks"])


def _trained(model: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for one in model["training_sets"]:
        released = ", ".join(f"version {of['version']} since revision {of['revision']}" for of in one["releases"])
        yield model["model"], one["cutoff"], one["rows"], ", ".join(one["versions"]), ", ".join(one["bentos"]), released


def _some(one: Mapping[str, Any]) -> str:
    ids: Sequence[str] = one["request_ids"]
    return ", ".join(ids) + (" ..." if one["answers"] > len(ids) else "")


def _show_remarks(problems: Sequence[str]) -> None:
    for problem in problems:
        typer.secho(f"Note: {problem}", fg="yellow", err=True)
