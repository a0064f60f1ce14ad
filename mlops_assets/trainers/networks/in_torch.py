"""A net in PyTorch's own modules: built from its numbers, and read back from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.networks.network import Layer, Network

if TYPE_CHECKING:
    import numpy as np


def module(network: Network) -> Any:
    """The layers as a torch module, ReLU between them."""
    import torch

    parts: list[Any] = []
    for layer in network.layers:
        outputs, inputs = layer.weight.shape
        dense = torch.nn.utils.skip_init(torch.nn.Linear, inputs, outputs)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(layer.weight.copy()))
            dense.bias.copy_(torch.from_numpy(layer.bias.copy()))
        parts += [dense, torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


def numbers(tensor: Any) -> np.ndarray:
    numbers: np.ndarray = tensor.detach().numpy().copy()
    return numbers


def layers(built: Any) -> tuple[Layer, ...]:
    """A copy of the weights of a module."""
    return tuple(Layer(numbers(dense.weight), numbers(dense.bias)) for dense in built[::2])


def criterion(task: str) -> Any:
    """The mean loss of what a module gives against the targets of a task."""
    import torch

    return torch.nn.BCEWithLogitsLoss() if task == "classification" else torch.nn.MSELoss()
