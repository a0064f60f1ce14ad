"""What a node of a federation does with its own rows: it tells sums over them, and learns from them. No row leaves it.

    MLOPS_HOME/federated/<node>/<team>.<model>.parquet     on the node's own disk: its training set of that model

The coordinator names a node and a model, never a path, and hears of counts, sums and weights alone. A node with fewer
rows than it was asked for tells nothing at all: sums over a handful would say what is in them.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.input_schema import InputSchema
from mlops_assets.trainers import Place
from mlops_assets.trainers.networks.fitting import Settings
from mlops_assets.trainers.networks.network import Network
from mlops_assets.trainers.networks.preparation import Preparation
from mlops_assets.trainers.torch import TorchLearner
from resources.environment import home
from resources.hardware import Kind, choose, this_machine

if TYPE_CHECKING:
    import numpy as np

ACCELERATORS: tuple[Kind, ...] = ("cuda", "mps", "cpu")
SCALES, LEARN = f"{__name__}:scales", f"{__name__}:learn"
NODE = re.compile(r"[a-z][a-z0-9_]*")
MODEL = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")


class NodeRowsError(RuntimeError):
    """A node has no rows to learn from, or too few to speak of."""

    @classmethod
    def of(cls, node: str, problem: str, fix: str) -> Self:
        return cls(f"Node {node!r} {problem}. {fix}")


@dataclass(frozen=True)
class Scales:
    """How many values of each column and of the target there are, their mean, and the sum of squares around it."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Self:
        """Of the rows (n, columns), NaN where missing, and their targets (n,), which are the last column here."""
        import numpy as np

        values = np.column_stack([x.astype(np.float64), y])
        known = ~np.isnan(values)
        count = known.sum(axis=0)
        mean = np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1)
        return cls(count, mean, (np.where(known, values - mean, 0) ** 2).sum(axis=0))

    def with_(self, other: Scales) -> Scales:
        """Of the rows of both."""
        import numpy as np

        count = self.count + other.count
        share, apart = other.count / np.maximum(count, 1), other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Scales(count, self.mean + apart * share, squares)

    @property
    def preparation(self) -> Preparation:
        """What scales each column, as `Preparation.fit` finds it where all rows are in one place."""
        import numpy as np

        spread = self.spread[:-1]
        return Preparation(self.mean[:-1].astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32))

    @property
    def spread(self) -> np.ndarray:
        import numpy as np

        spread: np.ndarray = np.sqrt(self.squares / np.maximum(self.count, 1))
        return spread


def scales(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The `Scales` of a node's rows, as lists. Raises NodeRowsError."""
    return {name: value.tolist() for name, value in asdict(Scales.of(*_rows(arguments))).items()}


def learn(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One round: go on from the weights that are given, over the node's rows; `rows` and the `state` it came to.

    Raises NodeRowsError.
    """
    x, y = _rows(arguments)
    prepared = unpacked(arguments["preparation"])
    preparation, (shift, scale) = Preparation(prepared["mean"], prepared["scale"]), arguments["target"]
    settings = Settings.of("A federated net", arguments["settings"])
    network = Network.drawn(arguments["task"], preparation, settings.hidden, arguments["seed"])
    device = choose("auto", ACCELERATORS, this_machine(), "A federated net")
    learner = TorchLearner(network, settings, device, "auto")
    learner.restore(unpacked(arguments["state"]))
    rows, targets = preparation(x), ((y - shift) / scale).astype("float32").reshape(-1, 1)
    for order in orders(len(rows), arguments["seed"], arguments["round"], arguments["node"], arguments["passes"]):
        learner.epoch(rows[order], targets[order])
    return {"rows": len(rows), "state": packed(learner.state())}


def orders(rows: int, seed: int, at: int, node: str, passes: int) -> list[np.ndarray]:
    """The order of the rows in each pass of a round, the same whenever it is asked for."""
    import numpy as np

    random = np.random.default_rng([seed, at, zlib.crc32(node.encode())])
    return [random.permutation(rows) for _ in range(passes)]


def place_of(node: str, model: str) -> Path:
    """Where a node keeps its rows of a model. Raises NodeRowsError for a name that is none."""
    if not NODE.fullmatch(node) or not MODEL.fullmatch(model):
        raise NodeRowsError.of(node, f"was asked for the rows of {model!r}", "Name a node like `north`, a model t/m.")
    return home() / "federated" / node / f"{model.replace('/', '.')}.parquet"


def packed(tensors: Mapping[str, np.ndarray]) -> str:
    """Arrays by name as text: safetensors in base64, which is how weights travel."""
    from safetensors.numpy import save

    return base64.b64encode(save({name: value.copy(order="C") for name, value in tensors.items()})).decode()


def unpacked(text: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    tensors: dict[str, np.ndarray] = load(base64.b64decode(text))
    return tensors


def _rows(arguments: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A node's rows of the time that is asked for, encoded, in time order, and their targets."""
    import polars as pl

    node, place, fewest = arguments["node"], Place(**arguments["place"]), arguments["min_rows"]
    path = place_of(node, place.model)
    if not path.is_file():
        raise NodeRowsError.of(node, f"has no rows of {place.model}", f"Put its training set at {path}.")
    since, until = (datetime.fromisoformat(at) for at in (place.since, place.until))
    within = pl.col("event_timestamp").is_between(since, until) & pl.col(place.label).is_not_null()
    frame = pl.scan_parquet(path).filter(within).sort("event_timestamp", place.key).collect()
    if frame.height < fewest:
        problem = f"has {frame.height} rows of {place.model} from {place.since} to {place.until}, fewer than {fewest}"
        raise NodeRowsError.of(node, problem, "Give it more, or leave it out.")
    schema = InputSchema.from_json(place.schema)
    return schema.encode_frame(frame), frame[place.label].cast(pl.Float64).to_numpy()
