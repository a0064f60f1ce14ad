"""Reads files of the prediction log: whole lines, in bounded chunks, as frames.

What a kill left of a last line was never a record. A line that was spoilt since costs no other, and its number is
missing from its file.
"""

from __future__ import annotations

import gzip
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import polars as pl

CHUNK_BYTES = 64 * 1024 * 1024  # about 90,000 answers
NEAR_BYTES = 64 * 1024
PUT_AWAY = ".gz"  # a file that is not written to any more takes an eighth of the room
TIMES, TIME = ("at", "logged_at"), "%Y-%m-%dT%H:%M:%S%.f%:z"
TEXTS = ("event_times", "fallbacks", "outputs")  # JSON of any shape


def columns() -> dict[str, pl.DataType]:
    """What every answer has, in the order of a table; some are JSON text."""
    import polars as pl

    time, text = pl.Datetime("us", "UTC"), pl.String()
    return {
        "request_id": text,
        "at": time,
        "logged_at": time,
        **dict.fromkeys(("release", "version", "variant", "instead_of", "writer", *TEXTS), text),
        "prediction": pl.Float64(),
        "latency_ms": pl.Float64(),
        "seq": pl.Int64(),
    }


def chunks(path: Path, start: int = 0) -> Iterator[bytes]:
    """The whole lines of a file from `start`, which a line begins at, some megabytes at a time."""
    with _opened(path) as file:
        file.seek(start)
        rest = b""
        while read := file.read(CHUNK_BYTES):
            lines = rest + read
            end = lines.rfind(b"\n") + 1
            rest = lines[end:]
            if end:
                yield lines[:end]


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == PUT_AWAY else path.open("rb")  # type: ignore[return-value]


def put_away(path: Path) -> None:
    """The file compressed, in its place; whoever reads the log reads on. A kill leaves both or one, whole."""
    told, target = path.stat(), path.with_name(path.name + PUT_AWAY)
    beside = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with path.open("rb") as whole, gzip.open(beside, "wb", compresslevel=6) as small:
            shutil.copyfileobj(whole, small)
        os.utime(beside, ns=(told.st_atime_ns, told.st_mtime_ns))
        if path.stat().st_mtime_ns == told.st_mtime_ns:  # else somebody still writes to it
            os.replace(beside, target)
            path.unlink()
    finally:
        beside.unlink(missing_ok=True)


def answers(lines: bytes, types: Mapping[str, pl.DataType] | None = None) -> pl.DataFrame:
    """Those that lines tell of: `columns`, then join keys and inputs by name, but for those named like a column.

    `types` says which keys and inputs to read and as what, which is three times as fast as finding out. Values of
    another type (of an older declaration) are found out about all the same.
    """
    import polars as pl

    frame = _as_told(lines, types) if types is not None else None
    return (_as_found(lines) if frame is None else frame).filter(pl.col("request_id").is_not_null())


def numbers(lines: bytes) -> pl.DataFrame:
    """What a gap shows in: `writer`, `seq`, and how many answers a line says were `dropped`."""
    import polars as pl

    schema = {"writer": pl.String(), "seq": pl.Int64(), "dropped": pl.Int64()}
    found = _parsed(lines, schema)
    return _parsed(_sound(lines), schema) if found is None else found  # type: ignore[return-value]


def start_of(path: Path, moment: float) -> int:
    """Where to begin for the lines written down at or after a moment (of Unix): a little before the first of them."""
    if path.suffix == PUT_AWAY:
        return 0
    low, high = 0, path.stat().st_size
    with path.open("rb") as file:
        while high - low > NEAR_BYTES:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline()
            at = file.tell()
            if at < high and _logged_before(file.readline(), moment):
                low = at
            else:
                high = middle
    return low


def lines_with(path: Path, request_id: str) -> Iterator[dict[str, Any]]:
    """The lines of one request, found by their bytes before any is read as JSON."""
    if path.suffix == PUT_AWAY:
        for lines in chunks(path):
            yield from _with(lines, request_id)
    elif path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _with(content, request_id)


def _with(content: bytes | mmap.mmap, request_id: str) -> Iterator[dict[str, Any]]:
    import orjson

    needle = b'"request_id":' + orjson.dumps(request_id)
    at = content.find(needle)
    while at >= 0:
        begin, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
        if end < 0:  # half-written
            return
        line = _line(content[begin:end])
        if line and line.get("request_id") == request_id:  # it may stand in an input as well
            yield line
        at = content.find(needle, end)


def _as_told(lines: bytes, types: Mapping[str, pl.DataType]) -> pl.DataFrame | None:
    """One pass over the lines; None when a value is not of its type, or a line is none."""
    import polars as pl

    fixed = columns()
    some = pl.Struct({name: dtype for name, dtype in types.items() if name not in fixed})
    frame = _parsed(lines, {**fixed, "keys": some, "inputs": some})
    if frame is None:
        return None
    given = [
        pl.coalesce(pl.col(place).struct.field(name) for place in ("inputs", "keys")).alias(name)
        for name in types
        if name not in fixed
    ]
    return frame.select(*fixed, *given)


def _as_found(lines: bytes) -> pl.DataFrame:
    """The same with the types that the values have."""
    import polars as pl

    fixed = columns()
    lines = _sound(lines)
    if not lines:
        return pl.DataFrame(schema=fixed)
    shapes = pl.read_ndjson(lines, infer_schema_length=None).schema
    given = {place: pl.Struct(dict(shapes.get(place) or pl.Struct({}))) for place in ("keys", "inputs")}  # type: ignore[call-overload]
    frame = _read(lines, {**fixed, **given})
    taken = {*fixed, *(field.name for field in given["inputs"].fields)}
    keys = [pl.col("keys").struct.field(field.name) for field in given["keys"].fields if field.name not in taken]
    inputs = [pl.col("inputs").struct.field(field.name) for field in given["inputs"].fields if field.name not in fixed]
    return frame.select(*fixed, *keys, *inputs)


def _parsed(lines: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame | None:
    """None when a line is not so."""
    import polars as pl

    if not lines:
        return pl.DataFrame(schema=schema)
    try:
        frame = _read(lines, schema)
    except pl.exceptions.PolarsError:
        return None
    return None if frame["seq"].null_count() else frame


def _read(lines: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """With times as text first: Polars' reader of JSON takes five times as long to make them of it."""
    import polars as pl

    times = [name for name in TIMES if name in schema]
    frame = pl.read_ndjson(lines, schema={**schema, **dict.fromkeys(times, pl.String())})
    return frame.with_columns(pl.col(times).str.to_datetime(TIME, time_unit="us", time_zone="UTC"))


def _sound(lines: bytes) -> bytes:
    """Without those that are no answers; slow, and only needed where there are some."""
    return b"".join(line for line in lines.splitlines(keepends=True) if _line(line) is not None)


def _line(line: bytes) -> dict[str, Any] | None:
    import orjson

    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "seq" in found else None


def _logged_before(line: bytes, moment: float) -> bool:
    found = _line(line)
    return found is not None and datetime.fromisoformat(found["logged_at"]).timestamp() < moment
