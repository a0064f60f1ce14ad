"""Whether a graph may answer for a model: only if it says the same, on thousands of rows, as the saved file.

Compared are the rows at hand and rows made to find a difference: on every threshold and a float beside it,
missing, extreme. One that differs is dropped, with the reason in the log, and the model's own library serves.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_assets.trainers import Classes
from mlops_assets.trainers.graphs import runtime
from mlops_assets.trainers.graphs.graph import Graph, probes

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor

TOLERANCE = 1e-5  # of a probability, or of the largest value
PROBES = 2000
ROWS = 5000

logger = logging.getLogger(__name__)


def add_graph(directory: Path, graph: Graph, native: Predictor, rows: np.ndarray | None) -> bool:
    """Write `serving.onnx` beside the saved model if it answers as `native` does; whether it was written."""
    from onnx import helper

    helper.set_model_props(graph.proto, {runtime.MADE_FROM: json.dumps(runtime.fingerprints(directory))})
    path = directory / runtime.FILE
    path.write_bytes(graph.proto.SerializeToString())
    if (found := difference(runtime.load(directory), native, _asked(graph, rows))) <= TOLERANCE:
        return True
    path.unlink()
    logger.warning("%s: its ONNX graph differs by %g; the model's own library serves", directory, found)
    return False


def difference(one: Predictor, other: Predictor, rows: np.ndarray) -> float:
    """The largest difference of two predictors, of classes that of their shares; inf for a NaN.

    Where values go beyond 1 it is a share of the largest: a float32 sum of trees is no more exact than its parts.
    """
    import numpy as np

    told, expected = ((each.shares if isinstance(each, Classes) else each)(rows) for each in (one, other))
    apart = np.abs(told - expected).max() / max(1.0, np.abs(expected).max())
    return float(apart) if np.isfinite(apart) else float("inf")


def _asked(graph: Graph, rows: np.ndarray | None) -> np.ndarray:
    """What the two are asked: probes, and up to ROWS of the given rows, evenly spread."""
    import numpy as np

    made = probes(graph.edges, PROBES)
    return made if rows is None else np.concatenate([made, rows[:: max(1, len(rows) // ROWS)]])
