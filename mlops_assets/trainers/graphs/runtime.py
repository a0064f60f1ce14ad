"""ONNX Runtime as what answers: a graph file becomes a predictor, after it was looked through.

ONNX has no code in it, but it may name operators of another library, and files elsewhere that hold its
weights. ONNX Runtime refuses the first without such a library; the second is refused here, by a look at the
bytes, because parsing a file twice would double what waking a model costs.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers import UnsafeModelFileError

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor

FILE = "serving.onnx"
MADE_FROM = "made_from"  # in the graph's own metadata: the native files, by name, and their hashes
ELSEWHERE = (b"location", b"EPContext")  # weights in another file, a blob made for other hardware
FEW = 64  # rows
WANTED = "an ONNX graph that holds its own weights"


class Runner:
    """A graph in ONNX Runtime, on the CPU. `path` is only for what an error says. Safe to call from several threads.

    A few rows are answered by the thread that asks: handing them to others takes longer than a row does. For many
    there is a second session on every core, made when it is first needed.
    """

    def __init__(self, path: Path, graph: bytes) -> None:
        self._path, self._graph = path, graph
        self.session = _session(path, graph, 1)
        self._few = self.session.run
        self._many: Any = None

    def run(self, outputs: list[str], inputs: dict[str, Any], rows: int) -> np.ndarray:
        """The first of the outputs."""
        answer: np.ndarray = (self._few if rows <= FEW else self._many or self._wide())(outputs, inputs)[0]
        return answer

    def _wide(self) -> Any:
        """Two threads that come here at once make one session too many, which is dropped."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._many = self._few if cores == 1 else _session(self._path, self._graph, cores).run
        return self._many


def load(directory: Path) -> Predictor:
    """The predictor of `serving.onnx`, which must have been made from the model files that lie beside it.

    Raises UnsafeModelFileError, FileNotFoundError where one of those files is missing.
    """
    path = directory / FILE
    graph = path.read_bytes()
    if any(word in graph for word in ELSEWHERE):
        raise UnsafeModelFileError.of(path, WANTED, "one that names another file")
    runner = Runner(path, graph)
    _refuse_other_origin(directory, runner.session.get_modelmeta().custom_metadata_map.get(MADE_FROM))
    outputs, run = ["y"], runner.run
    return lambda x: run(outputs, {"x": x}, len(x))


def _session(path: Path, graph: bytes, threads: int) -> Any:
    import onnxruntime

    if graph[:1] == b"\x80":
        raise UnsafeModelFileError.of(path, WANTED, "a pickle")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it keeps what the largest batch took; a row is answered as fast without
    # threads that wait by spinning take the cores from whoever answers beside
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
