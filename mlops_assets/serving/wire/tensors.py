"""Tensors of the Open Inference Protocol, read into columns and written from them: in JSON, or as bytes behind it.

A column is a tensor of shape [n] or [n, 1], an array of k numbers one of [n, k]. The protocol has no null: NaN is a
missing number, and JSON's null is taken for any type.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from mlops_assets.fields import TypeName
from mlops_assets.serving.wire.columns import Values
from mlops_assets.serving.wire.formats import refuse_too_many
from mlops_assets.serving.wire.problems import InvalidRequestError

NUMBERS: dict[str, np.dtype[Any]] = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BOOL": np.dtype(np.bool_),
}
KINDS: dict[str, tuple[TypeName, set[type]]] = {"b": ("Bool", {bool}), "f": ("Float64", {int, float})}
WHOLE: tuple[TypeName, set[type]] = ("Int64", {int})
DATATYPES: dict[TypeName, str] = {
    "Bool": "BOOL",
    "Int64": "INT64",
    "Float64": "FP64",
    "String": "BYTES",
    "UnixTimestamp": "BYTES",
    "Float64Array": "FP64",
}


def read_tensors(inputs: Any, binary: bytes) -> dict[str, Values]:
    """The columns of a request's `inputs`; `binary` is what follows the JSON. Raises InvalidRequestError."""
    if not isinstance(inputs, list) or not inputs or not all(isinstance(tensor, dict) for tensor in inputs):
        raise InvalidRequestError.of("inputs is missing or empty", "Send a list of tensors.", "inputs")
    columns: dict[str, Values] = {}
    for tensor in inputs:
        name = tensor.get("name")
        if not isinstance(name, str) or name in columns:
            raise InvalidRequestError.of("a tensor without a name, or two of one", "Name each input once.", "inputs")
        try:
            columns[name], binary = _read(tensor, binary)
        except InvalidRequestError:
            raise
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise InvalidRequestError.of(
                str(error), "Send data of its datatype and shape, row by row.", name
            ) from error
    if len({values.size for values in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {values.size}" for name, values in columns.items())
        raise InvalidRequestError.of(f"tensors of unequal length ({sizes})", "Send one value a row in each.", "inputs")
    if binary:
        raise InvalidRequestError.of(
            f"{len(binary)} bytes that belong to no tensor", "Mend binary_data_size.", "inputs"
        )
    return columns


def _read(tensor: Mapping[str, Any], binary: bytes) -> tuple[Values, bytes]:
    """One tensor, and the bytes that are left."""
    rows, width = _shape(tensor.get("shape"))
    datatype, size = tensor.get("datatype"), (tensor.get("parameters") or {}).get("binary_data_size")
    if datatype != "BYTES" and datatype not in NUMBERS:
        raise ValueError(f"datatype {datatype!r} is none of {', '.join([*NUMBERS, 'BYTES'])}")
    if (datatype in ("BYTES", "BOOL")) and width != 1:
        raise ValueError(f"{datatype} of shape {[rows, width]}; only numbers come as arrays")
    if size is None:
        return _from_json(datatype, tensor.get("data"), rows, width), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise ValueError(f"binary_data_size {size!r}, where {len(binary)} bytes are left")
    return _from_bytes(datatype, binary[:size], rows, width), binary[size:]


def _shape(shape: Any) -> tuple[int, int]:
    """Rows, and values in each."""
    if not (isinstance(shape, list) and len(shape) in (1, 2) and {*map(type, shape)} == {int} and min(shape) > 0):
        raise ValueError(f"shape {shape!r} is neither [rows] nor [rows, numbers]")
    refuse_too_many(shape[0])
    return shape[0], shape[1] if len(shape) == 2 else 1


def _from_json(datatype: str, data: Any, rows: int, width: int) -> Values:
    if not isinstance(data, list):
        raise TypeError("data is missing")
    flat: list[Any] = [*chain.from_iterable(data)] if data and isinstance(data[0], list) else data
    if len(flat) != rows * width:
        raise ValueError(f"{len(flat)} values for a shape of {rows * width}")
    types = {*map(type, flat)}
    if datatype == "BYTES":
        if not types <= {str, type(None)}:
            raise ValueError("BYTES that are no text")
        return Values("String", flat)
    dtype, allowed = KINDS.get(NUMBERS[datatype].kind, WHOLE)
    if not types <= allowed | {type(None)}:
        raise ValueError(f"{datatype} that holds {', '.join(sorted(one.__name__ for one in types - allowed))}")
    missing = np.array([value is None for value in flat], np.bool_)
    if dtype == "Float64":
        numbers = np.array([np.nan if value is None else value for value in flat], np.float64)
        return _shaped(numbers, rows, width)
    array = np.array([0 if value is None else value for value in flat], NUMBERS[datatype])
    return _whole(dtype, array, missing, rows, width)


def _from_bytes(datatype: str, data: bytes, rows: int, width: int) -> Values:
    if datatype == "BYTES":
        return Values("String", _texts(data, rows))
    array = np.frombuffer(data, np.uint8 if datatype == "BOOL" else NUMBERS[datatype])
    if len(array) != rows * width:
        raise ValueError(f"{len(array)} values for a shape of {rows * width}")
    if NUMBERS[datatype].kind == "f":
        return _shaped(array.astype(np.float64), rows, width)
    if datatype == "BOOL":
        if array.max(initial=0) > 1:
            raise ValueError("BOOL that is neither 0 nor 1")
        return Values("Bool", array.astype(np.bool_), np.zeros(rows, np.bool_))
    return _whole("Int64", array, np.zeros(len(array), np.bool_), rows, width)


def _whole(dtype: TypeName, array: np.ndarray, missing: np.ndarray, rows: int, width: int) -> Values:
    if dtype == "Bool":
        return Values("Bool", array, missing)
    if array.dtype == np.uint64 and array.max(initial=0) >= 2**63:
        raise ValueError("a whole number beyond Int64")
    if width == 1:
        return Values("Int64", array.astype(np.int64), missing)
    return _shaped(np.where(missing, np.nan, array.astype(np.float64)), rows, width)


def _shaped(numbers: np.ndarray, rows: int, width: int) -> Values:
    if width == 1:
        return Values("Float64", numbers)
    block = numbers.reshape(rows, width)
    return Values("Float64Array", block, np.isnan(block).all(axis=1))


def _texts(data: bytes, rows: int) -> list[str]:
    """Each text behind its length in four bytes."""
    texts, at = [], 0
    for _ in range(rows):
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise ValueError("a text ends beyond its tensor")
        texts.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the last text")
    return texts


def write_tensor(name: str, dtype: TypeName, values: Sequence[Any], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """A column as a tensor, and the bytes it has behind the JSON: none where a value is missing that bytes lack."""
    tensor: dict[str, Any] = {"name": name, "shape": [len(values)], "datatype": DATATYPES[dtype]}
    if not binary or (None in values and dtype != "Float64"):
        return {**tensor, "data": values}, b""
    if dtype == "String":
        data = b"".join(struct.pack("<I", len(text := value.encode())) + text for value in values)
    else:
        given = [np.nan if value is None else value for value in values]
        data = np.array(given, NUMBERS[DATATYPES[dtype]]).tobytes()
    return {**tensor, "parameters": {"binary_data_size": len(data)}}, data
