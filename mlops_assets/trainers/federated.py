"""A net that learns from rows which stay where they are: federated averaging (McMahan et al., 2017) by PyTorch.

Every round each node goes on from the same weights, over its own rows, and the weights that they come to are averaged
by how many rows each has; with them what their optimizers remember. The training set here is one node more, and what
the model is judged on: nodes are asked for no validation rows. What leaves a node is told in `federation.node`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.checkpoints import Progress
from mlops_assets.trainers import Place, TrainerParameterError
from mlops_assets.trainers.federation.node import ACCELERATORS, LEARN, NODE, SCALES, Scales, packed, unpacked
from mlops_assets.trainers.networks.fitting import DEFAULTS as NET
from mlops_assets.trainers.networks.fitting import Learner, NetTrainer, Problem, Settings, fitted
from mlops_assets.trainers.networks.network import Layer, Network
from mlops_assets.trainers.torch import TorchLearner
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.federation.rounds import Nodes
    from mlops_assets.trainers.networks.preparation import Preparation

DEFAULTS: Mapping[str, Any] = {
    "nodes": (),
    "compute": "subprocess",
    "at_least": None,
    "wait_seconds": 600.0,
    "passes": 1,
    "min_rows": 100,
}


class _Federated(NetTrainer):
    """A round is one of the net's `epochs`; see `networks.fitting` for the rest of its parameters.

    `nodes` are the names of the others, machines of the kind `compute`. Each makes `passes` over its rows in a round
    and must have `min_rows`. A node that fails, or has not answered after `wait_seconds`, is left out of the round;
    with fewer than `at_least` of them (default: half) the training ends.
    """

    accelerators = ACCELERATORS
    own = tuple(DEFAULTS)
    place: Place | None = None

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        nodes = self._own["nodes"]
        self._refuse_other_compute()
        if unnamed := [name for name in nodes if not isinstance(name, str) or not NODE.fullmatch(name)]:
            raise self._problem("nodes", f"holds {unnamed}", "Names are lower case letters, digits and _.")
        if len({*nodes}) < len(nodes):
            raise self._problem("nodes", "names one twice", "Name each node once.")
        if not 0 <= self.at_least <= len(nodes):
            raise self._problem("at_least", f"is {self.at_least} of {len(nodes)} nodes", "Ask for no more than all.")

    @property
    def at_least(self) -> int:
        told, nodes = self._own["at_least"], self._own["nodes"]
        return -(-len(nodes) // 2) if told is None else int(told)

    def placed(self, place: Place) -> _Federated:
        known = type(self)(**self.params)
        object.__setattr__(known, "place", place)  # where a fit happens is no part of the declaration
        return known

    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner:
        return TorchLearner(network, settings, device, "auto")

    @property
    def _own(self) -> dict[str, Any]:
        return {name: self.params.get(name, default) for name, default in DEFAULTS.items()}

    def _scales(self, x: np.ndarray, y: np.ndarray, settings: Settings) -> tuple[Preparation, float, float]:  # noqa: ARG002
        """Over the rows of all nodes, from sums: as if they lay in one place."""
        import numpy as np

        found = Scales.of(x, y)
        if nodes := self._nodes():
            for _, told in sorted(nodes.ask(SCALES, self._asked()).items()):
                found = found.with_(Scales(*(np.array(told[name]) for name in ("count", "mean", "squares"))))
        if self.task == "classification":
            return found.preparation, 0.0, 1.0
        return found.preparation, float(found.mean[-1]), float(found.spread[-1]) or 1.0

    def _weights(self, problem: Problem, progress: Progress, device: Device) -> tuple[tuple[Layer, ...], int]:
        nodes, prepared = self._nodes(), problem.network.preparation
        if nodes is None:
            return fitted(self._learner(problem.network, problem.settings, device), problem, progress)
        # each takes its part of a batch: a round has as many steps as an epoch in one place
        part = replace(problem.settings, batch_size=max(1, problem.settings.batch_size // (1 + len(nodes.names))))
        learner = self._learner(problem.network, part, device)
        arguments = self._asked() | {
            "task": self.task,
            "settings": {name: getattr(part, name) for name in NET},
            "seed": problem.seed,
            "passes": self._own["passes"],
            "preparation": packed({"mean": prepared.mean, "scale": prepared.scale}),
            "target": list(problem.target),
        }
        return fitted(_Rounds(learner, nodes, arguments), problem, progress)

    def _refuse_other_compute(self) -> None:
        if self._own["nodes"]:
            from resources.compute import known

            known(self._own["compute"])

    def _nodes(self) -> Nodes | None:
        from mlops_assets.trainers.federation.rounds import Nodes

        own = self._own
        return Nodes(own["nodes"], own["compute"], self.at_least, own["wait_seconds"]) if own["nodes"] else None

    def _asked(self) -> dict[str, Any]:
        if self.place is None:
            raise self._problem("nodes", "are there, but nobody said which rows to learn from", "Fit it by a training.")
        return {"place": asdict(self.place), "min_rows": self._own["min_rows"]}

    def _problem(self, name: str, problem: str, fix: str) -> TrainerParameterError:
        return TrainerParameterError.of(type(self).__name__, name, problem, fix)


class FederatedClassifier(_Federated):
    """Predicts the probability of the positive class."""

    task = "classification"


class FederatedRegressor(_Federated):
    """Predicts a value, by squared error."""

    task = "regression"


class _Rounds:
    """A learner whose epoch is a round: the nodes learn at the same time as the rows that lie here."""

    def __init__(self, learner: Learner, nodes: Nodes, arguments: Mapping[str, Any]) -> None:
        self._learner, self._nodes, self._arguments, self._round = learner, nodes, arguments, 0
        self.loss, self.layers = learner.loss, learner.layers

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        def here() -> None:
            for _ in range(self._arguments["passes"]):
                self._learner.epoch(x, y)

        asked = {**self._arguments, "round": self._round, "state": packed(self._learner.state())}
        answers = [one for _, one in sorted(self._nodes.ask(LEARN, asked, here).items())]
        states = [(len(x), self._learner.state()), *((one["rows"], unpacked(one["state"])) for one in answers)]
        self._learner.restore(averaged(states))
        self._round += 1

    def state(self) -> dict[str, np.ndarray]:
        import numpy as np

        return {**self._learner.state(), "round": np.array([self._round])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._round = int(state["round"][0])
        self._learner.restore({name: value for name, value in state.items() if name != "round"})


def averaged(states: Sequence[tuple[int, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The mean of arrays of the same names, each counted by its rows."""
    import numpy as np

    total = sum(rows for rows, _ in states)
    sums = {name: sum(state[name] * (rows / total) for rows, state in states) for name in states[0][1]}
    return {name: np.asarray(value, states[0][1][name].dtype) for name, value in sums.items()}


def load(directory: Path) -> Predictor:
    from mlops_assets.trainers import torch

    return torch.load(directory)
