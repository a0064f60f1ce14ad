"""ONNX Runtime as what answers: a graph file becomes a predictor, after it was looked through.

ONNX has no code in it, but it may name operators of another library, and files elsewhere that hold its
weights. ONNX Runtime refuses the first without such a library; the second is refused here, by a look at the
bytes, because parsing a file twice would double what waking a model costs.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers import Classes, UnsafeModelFileError
from mlops_assets.trainers.graphs.graph import INPUT, OUTPUT, SHARES

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor

FILE = "serving.onnx"
MADE_FROM = "made_from"  # in the graph's own metadata: the native files, by name, and their hashes
ELSEWHERE = (b"location", b"EPContext")  # weights in another file, a blob made for other hardware
WANTED = "an ONNX graph that holds its own weights"


def load(directory: Path) -> Predictor:
    """The predictor of `serving.onnx`, which must have been made from the model files that lie beside it.

    Raises UnsafeModelFileError, FileNotFoundError where one of those files is missing.
    """
    path = directory / FILE
    graph = path.read_bytes()
    if any(word in graph for word in ELSEWHERE):
        raise UnsafeModelFileError.of(path, WANTED, "one that names another file")
    session = session_of(path, graph)
    _refuse_other_origin(directory, session.get_modelmeta().custom_metadata_map.get(MADE_FROM))
    told = {output.name for output in session.get_outputs()}
    outputs, run = [SHARES if SHARES in told else OUTPUT], session.run

    def predict(x: np.ndarray) -> np.ndarray:
        answer: np.ndarray = run(outputs, {INPUT: x})[0]
        return answer

    return Classes(predict) if SHARES in told else predict


def session_of(path: Path, graph: bytes) -> Any:
    """A graph in ONNX Runtime, on the CPU and on the thread that asks. `path` is only for what an error says.

    Handing rows to other threads takes longer than a few rows do, and for many it gains only where those threads wait
    by spinning, which takes the cores from whoever answers beside.
    """
    import onnxruntime

    if graph[:1] == b"\x80":
        raise UnsafeModelFileError.of(path, WANTED, "a pickle")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it keeps what the largest batch took; a row is answered as fast without
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime's errors share no base of their own
        raise UnsafeModelFileError.of(path, WANTED, f"something it cannot read ({problem})") from problem


def fingerprints(directory: Path) -> dict[str, str]:
    """The hash of each file beside the graph."""
    files = sorted(path for path in directory.iterdir() if path.name != FILE)
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def _refuse_other_origin(directory: Path, made_from: str | None) -> None:
    """A graph answers only beside the very files it was compared with: no mix of two trainings, no swapped file."""
    wanted, found = json.loads(made_from or "{}"), fingerprints(directory)
    if not wanted:
        raise UnsafeModelFileError.of(directory / FILE, "a graph that names what it was made from", "one that does not")
    for name, fingerprint in wanted.items():
        path = directory / name
        if name not in found:
            raise FileNotFoundError(f"No model file {path} (the directory holds: {', '.join(found) or 'nothing'}).")
        if found[name] != fingerprint:
            what = "a pickle" if path.read_bytes()[:1] == b"\x80" else "other bytes"
            raise UnsafeModelFileError.of(path, f"the file that {FILE} was made from", what)
