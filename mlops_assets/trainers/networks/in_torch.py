"""A net in PyTorch's own modules: built from its numbers, and read back from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.networks.network import Layer, Network

if TYPE_CHECKING:
    import numpy as np


def module(network: Network) -> Any:
    """The layers as a torch module, ReLU between them; images come flat, channel by channel."""
    import torch

    image, parts = network.preparation.image, list[Any]()
    if image and network.layers[0].convolves:
        height, width, planes = image
        parts.append(torch.nn.Unflatten(1, (planes, height, width)))
    for place, layer in enumerate(network.layers):
        if layer.convolves:
            parts += [_filled(layer), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
            continue
        if place and network.layers[place - 1].convolves:
            parts.append(torch.nn.Flatten())
        parts += [_filled(layer), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


def _filled(layer: Layer) -> Any:
    """A torch layer of these weights."""
    import torch

    outputs, inputs, *kernel = layer.weight.shape
    build = torch.nn.utils.skip_init
    if kernel:
        made = build(torch.nn.Conv2d, inputs, outputs, tuple(kernel), padding=kernel[0] // 2)
    else:
        made = build(torch.nn.Linear, inputs, outputs)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(layer.weight.copy()))
        made.bias.copy_(torch.from_numpy(layer.bias.copy()))
    return made


def numbers(tensor: Any) -> np.ndarray:
    numbers: np.ndarray = tensor.detach().cpu().numpy().copy()
    return numbers


def layers(built: Any) -> tuple[Layer, ...]:
    """A copy of the weights of a module."""
    return tuple(Layer(numbers(part.weight), numbers(part.bias)) for part in built if hasattr(part, "weight"))


def criterion(task: str) -> Any:
    """The mean loss of what a module gives against the targets of a task."""
    import torch

    if task == "multiclass":
        entropy = torch.nn.CrossEntropyLoss()
        return lambda logits, classes: entropy(logits, classes[:, 0].long())
    return torch.nn.BCEWithLogitsLoss() if task == "classification" else torch.nn.MSELoss()
