"""The receipt of an answer: from the request to the rows it was made of, and to those its model was trained on.

    request -> release -> Bento -> model version and MLflow run -> training set -> views and their partitions -> runs

Found by the request's id in the prediction log or, where a log was put away, in the published predictions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from mlops_assets.catalog import asset_key
from mlops_assets.links.predictions import ANSWER
from mlops_assets.records import Document, Records, link_key
from mlops_assets.used_rows import partition_at, read_tables, trained_on, used_by

TEXTS = ("event_times", "fallbacks", "outputs")


class UnknownRequestError(LookupError):
    """No answer is known of a request."""

    @classmethod
    def of(cls, request_id: str, looked: Sequence[str]) -> Self:
        return cls(
            f"No answer to a request {request_id!r} is in the prediction log or a published table of predictions "
            f"(looked at: {', '.join(looked) or 'no model has answered yet'}). A request's id is the event's own key "
            "where the caller gave it, else the one in its answer; an answer is logged 0.2 s after it was given."
        )


def receipts(request_id: str, records: Records, model: str | None = None) -> list[Document]:
    """One for each answer that the request got, a shadow's included. Raises UnknownRequestError."""
    answers = [*records.log.find(request_id, model), *records.log.find(request_id, model, shadow=True)]
    looked = [model] if model else sorted({*records.log.models(), *records.catalog.models})
    answers = answers or [found for name in looked for found in _published(request_id, name, records)]
    if not answers:
        raise UnknownRequestError.of(request_id, looked)
    return [_receipt(answer, records) for answer in answers]


def _receipt(answer: Document, records: Records) -> Document:
    records = records.anew()
    model, version, answered = answer["model"], answer["version"], datetime.fromisoformat(answer["logged_at"])
    manifest = records.manifest(answer["release"])
    candidate = records.candidate(model, version, manifest)
    return {
        "request": answer,
        "release": records.release(model, answer["release"], answered),
        "bento": _bento(answer["release"], manifest, records),
        "model": {"model": model, **candidate},
        "training_set": _training_set(model, candidate, records),
        "views": list(_views(answer, answered, records)),
        "remarks": list(records.problems),
    }


def _bento(tag: str, manifest: Mapping[str, Any], records: Records) -> Document:
    return {"tag": tag, "path": str(records.bentos.path(tag)) if manifest else None}


def _training_set(model: str, candidate: Mapping[str, Any], records: Records) -> Document:
    """With the partitions of each table that its rows used, by how many rows, and the runs that published those."""
    cutoff = candidate["cutoff"]
    if cutoff is None:
        records.tell(f"the training set: nothing says as of which cutoff version {candidate['version']} was trained")
        return {}
    told = records.training_set(model, cutoff, candidate["training_set_hash"])
    pipeline = records.catalog.models.get(model)
    if pipeline is None:
        records.tell(f"the declarations: {model} is not declared any more, so its views are not known")
    elif told["path"]:
        told["made_of"] = records.ask("the training set's rows", trained_on, pipeline, cutoff, records.lake) or {}
        told["made_by"] = {
            name: records.publishers(asset_key(table), list(told["made_of"].get(name, {})), told.get("published_at"))
            for name, table in read_tables(pipeline).items()
        }
    return told


def _views(answer: Document, answered: datetime, records: Records) -> Iterator[Document]:
    """The row of each view that the answer used: its partition, and the run that published that."""
    if cold := [one["view"] for one in answer["fallbacks"] if one["used"] == "cold start"]:
        records.tell(f"the prediction log: the rows of the cold starts used for {', '.join(cold)} are not logged")
    for view, moment in used_by(answer).items():
        told: Document = {"view": view, "event_time": moment.isoformat()}
        table = records.catalog.tables.get(view)
        if table is None:
            records.tell(f"the declarations: {view} is not declared any more, so its partitions are not known")
            yield told
        else:
            yield told | records.publication(asset_key(table), partition_at(table, moment), before=answered)


def _published(request_id: str, model: str, records: Records) -> list[Document]:
    """The answers in the tables of predictions; nothing where there are none."""
    import polars as pl

    key = link_key(model, "predictions")
    if not records.lake.partitions(key):
        return []
    rows = records.ask(
        "the predictions", lambda: records.lake.scan(key).filter(pl.col("request_id") == request_id).collect()
    )
    return [] if rows is None else [_answer(model, row, records) for row in rows.to_dicts()]


def _answer(model: str, row: Document, records: Records) -> Document:
    """A row of the table in the form of a line of the log."""
    pipeline = records.catalog.models.get(model)
    keys = pipeline.labels.join_keys if pipeline else ()
    inputs = pipeline.inputs if pipeline else [name for name in row if name not in ANSWER]
    told = {name: row[name] for name in ANSWER if name in row}
    times = {name: row[name].isoformat() for name in ("at", "logged_at")}
    texts = {name: json.loads(row[name]) if row.get(name) else {} for name in TEXTS}
    return {
        "model": model,
        **told,
        **times,
        **texts,
        "keys": {name: row[name] for name in keys if row.get(name) is not None},
        "inputs": {name: row.get(name) for name in inputs},
    }
