"""A net of dense layers fitted by PyTorch; saved as safetensors and plain JSON, never as torch's own pickle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers import threads
from mlops_assets.trainers.networks import in_torch
from mlops_assets.trainers.networks.fitting import IMAGE_DEFAULTS, Learner, NetTrainer, Settings
from mlops_assets.trainers.networks.network import Layer, Network
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor


class _Torch(NetTrainer):
    accelerators = ("cuda", "mps", "cpu")

    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner:  # noqa: ARG002
        return _Learner(network, settings)


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


class _Learner:
    def __init__(self, network: Network, settings: Settings) -> None:
        import torch

        torch.set_num_threads(threads())
        self.module, self.batch = in_torch.module(network), settings.batch_size
        self.criterion = in_torch.criterion(network.task)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        import torch

        for rows, wanted in zip(
            torch.from_numpy(x).split(self.batch), torch.from_numpy(y).split(self.batch), strict=True
        ):
            self.optimizer.zero_grad()
            self.criterion(self.module(rows), wanted).backward()
            self.optimizer.step()

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        import torch

        with torch.inference_mode():
            return float(self.criterion(self.module(torch.from_numpy(x)), torch.from_numpy(y)))

    def layers(self) -> tuple[Layer, ...]:
        return in_torch.layers(self.module)

    def state(self) -> dict[str, np.ndarray]:
        told = {f"weight.{place}": value for place, value in enumerate(self.module.parameters())}
        for place, remembered in self.optimizer.state_dict()["state"].items():
            told |= {f"{name}.{place}": value for name, value in remembered.items()}
        return {name: in_torch.numbers(value) for name, value in told.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        import torch

        remembered: dict[int, dict[str, Any]] = {}
        for key, tensor in state.items():
            name, _, at = key.rpartition(".")
            remembered.setdefault(int(at), {})[name] = torch.from_numpy(tensor.copy())
        with torch.no_grad():
            for place, parameter in enumerate(self.module.parameters()):
                parameter.copy_(remembered[place].pop("weight"))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": remembered, "param_groups": groups})


def load(directory: Path) -> Predictor:
    import torch

    network = Network.read(directory)
    module = in_torch.module(network).eval()

    def forward(prepared: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = module(torch.from_numpy(prepared)).numpy()
            return answer

    return network.predictor(forward)
