"""A net fitted by PyTorch, alone or by several workers; saved as safetensors and JSON, never as torch's own pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from mlops_assets.trainers import TrainerParameterError, threads
from mlops_assets.trainers.distributed.team import Team
from mlops_assets.trainers.networks import in_torch
from mlops_assets.trainers.networks.fitting import IMAGE_DEFAULTS, Learner, NetTrainer, Problem, Settings, fitted
from mlops_assets.trainers.networks.network import Layer, Network
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.checkpoints import Progress
    from mlops_assets.trainers import Predictor

Precision = Literal["auto", "full", "mixed"]


@dataclass(frozen=True)
class _How:
    """The parameters that PyTorch alone has, each checked."""

    workers: int = 1
    precision: Precision = "auto"

    @classmethod
    def of(cls, trainer: str, given: Mapping[str, Any]) -> Self:
        how = cls(**given)
        if not isinstance(how.workers, int) or isinstance(how.workers, bool) or how.workers < 1:
            raise TrainerParameterError.of(trainer, "workers", f"is {how.workers!r}", "Give a whole number above 0.")
        if how.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise TrainerParameterError.of(trainer, "precision", f"is {how.precision!r}", f"Give one of {known}.")
        return how

    def refuse(self, trainer: str, device: Device) -> None:
        """Apple's GPU by PyTorch does neither."""
        if device.kind != "mps":
            return
        if self.workers > 1:
            fix = "Give one worker, or accelerator='cpu'."
            raise TrainerParameterError.of(trainer, "workers", f"is {self.workers} on Apple's one GPU", fix)
        if self.precision == "mixed":
            fix = "Give 'full'; mixed precision is for cuda, and for cpu where bfloat16 is to be tried."
            raise TrainerParameterError.of(trainer, "precision", "is 'mixed' on mps", fix)


class _Torch(NetTrainer):
    """`workers` fit one net together, each on its part of every batch, to the model of one alone, to rounding.

    `precision` "mixed" multiplies in half precision and keeps the weights in full; "auto" does so on CUDA alone.
    """

    accelerators = ("cuda", "mps", "cpu")
    own = ("workers", "precision")

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        known = (*self.defaults, *self.own)
        for name in params:
            if name not in known:
                trainer, fix = type(self).__name__, f"It knows: {', '.join(known)}."
                raise TrainerParameterError.of(trainer, name, "is not known", fix)
        self._how(self.params)

    def _how(self, given: Mapping[str, Any]) -> _How:
        return _How.of(type(self).__name__, {name: given[name] for name in self.own if name in given})

    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner:
        return TorchLearner(network, settings, device, self._how(self.params).precision)

    def _weights(self, problem: Problem, progress: Progress, device: Device) -> tuple[tuple[Layer, ...], int]:
        how = self._how(problem.own)
        how.refuse(type(self).__name__, device)
        if how.workers > 1:
            from mlops_assets.trainers.distributed.fit import fitted_by

            return fitted_by(how.workers, problem, progress, device, how.precision)
        learner = TorchLearner(problem.network, problem.settings, device, how.precision)
        return fitted(learner, problem, progress)


class TorchClassifier(_Torch):
    """Predicts the probability of the positive class."""

    task = "classification"


class TorchRegressor(_Torch):
    """Predicts a value, by squared error."""

    task = "regression"


class TorchImageClassifier(_Torch):
    """Predicts the class of an image, from its numbers line by line; `image` is its height, width and channels."""

    task = "multiclass"
    defaults = IMAGE_DEFAULTS


class TorchLearner:
    """A net and its optimizer on a device, for one worker of a `team`, or for one alone."""

    def __init__(
        self, network: Network, settings: Settings, device: Device, precision: Precision, team: Team | None = None
    ) -> None:
        import torch

        torch.set_num_threads(threads())
        self.place, self.team = _place(device), team
        self.half = _half(precision, device)
        self.module, self.batch = in_torch.module(network).to(self.place), settings.batch_size
        self.model = torch.nn.parallel.DistributedDataParallel(self.module) if team else self.module
        self.criterion = in_torch.criterion(network.task)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        # small gradients would be 0 in float16; bfloat16 has the range of float32 and needs no scale
        self.scaler = torch.amp.GradScaler(device.kind, enabled=self.half is torch.float16)

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        """With a team, the rows are those of this worker's parts."""
        import torch

        parts = (self.team or Team(rows=len(x))).parts(self.batch)
        rows, wanted = (torch.from_numpy(array).split([part.rows for part in parts]) for array in (x, y))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for at, part in enumerate(parts):
                if part.rows:
                    self._step(rows[at], wanted[at], part.weight)
                else:  # the others' step needs this worker too
                    self._step(torch.zeros(1, *rows[at].shape[1:]), torch.zeros(1, *wanted[at].shape[1:]), 0.0)

    def _step(self, rows: Any, wanted: Any, weight: float) -> None:
        import torch

        self.optimizer.zero_grad()
        with torch.autocast(self.place.type, dtype=self.half, enabled=self.half is not None):
            answers = self.model(rows.to(self.place))
        loss = self.criterion(answers.float(), wanted.to(self.place))
        self.scaler.scale(loss).backward(torch.full_like(loss, weight))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        """In full precision, as is predicted; with a team, the mean of all its workers' rows."""
        import torch

        with torch.inference_mode():
            rows, wanted = (torch.from_numpy(array).to(self.place) for array in (x, y))
            if not self.team:
                return float(self.criterion(self.module(rows), wanted))
            total = float(self.criterion(self.module(rows), wanted)) * len(x) if len(x) else 0.0
            both = torch.tensor([total, len(x)], dtype=torch.float64, device=self.place)
            torch.distributed.all_reduce(both)
            return float(both[0] / both[1])

    def layers(self) -> tuple[Layer, ...]:
        return in_torch.layers(self.module)

    def state(self) -> dict[str, np.ndarray]:
        import numpy as np

        told = {f"weight.{place}": value for place, value in enumerate(self.module.parameters())}
        for place, remembered in self.optimizer.state_dict()["state"].items():
            told |= {f"{name}.{place}": value for name, value in remembered.items()}
        scaling = {f"scaler.{name}": np.array(value) for name, value in self.scaler.state_dict().items()}
        return {name: in_torch.numbers(value) for name, value in told.items()} | scaling

    def restore(self, state: dict[str, np.ndarray]) -> None:
        import torch

        remembered: dict[int, dict[str, Any]] = {}
        scaling = {key.partition(".")[2]: value.item() for key, value in state.items() if key.startswith("scaler.")}
        self.scaler.load_state_dict(scaling)
        for key, tensor in state.items():
            name, _, at = key.rpartition(".")
            if name == "scaler":
                continue
            remembered.setdefault(int(at), {})[name] = torch.from_numpy(tensor.copy())
        with torch.no_grad():
            for place, parameter in enumerate(self.module.parameters()):
                parameter.copy_(remembered[place].pop("weight"))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": remembered, "param_groups": groups})


def _place(device: Device) -> Any:
    import torch

    return torch.device(device.kind, device.index) if device.kind == "cuda" else torch.device(device.kind)


def _half(precision: Precision, device: Device) -> Any:
    """The type that a device multiplies in half precision; None for full."""
    import torch

    if precision == "full" or (precision == "auto" and device.kind != "cuda"):
        return None
    if device.kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def load(directory: Path) -> Predictor:
    import torch

    network = Network.read(directory)
    module = in_torch.module(network).eval()

    def forward(prepared: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = module(torch.from_numpy(prepared)).numpy()
            return answer

    return network.predictor(forward)
