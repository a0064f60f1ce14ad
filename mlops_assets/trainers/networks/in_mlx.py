"""A net in MLX's own arrays: built from its numbers, and read back from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlops_assets.trainers.networks.network import Layer, Network


def arrays(network: Network) -> list[dict[str, Any]]:
    import mlx.core as mx

    return [{"weight": mx.array(layer.weight), "bias": mx.array(layer.bias)} for layer in network.layers]


def forward(weights: Sequence[dict[str, Any]], x: Any) -> Any:
    import mlx.core as mx

    *hidden, last = weights
    for layer in hidden:
        x = mx.maximum(x @ layer["weight"].T + layer["bias"], 0)
    return x @ last["weight"].T + last["bias"]


def layers(held: Sequence[dict[str, Any]]) -> tuple[Layer, ...]:
    """A copy of the weights of arrays."""
    import numpy as np

    return tuple(Layer(np.array(layer["weight"]), np.array(layer["bias"])) for layer in held)


def criterion(task: str) -> Callable[[Any, Any], Any]:
    """The mean loss of what a net gives against the targets of a task."""
    from mlx import nn

    loss = nn.losses.binary_cross_entropy if task == "classification" else nn.losses.mse_loss
    return partial(loss, reduction="mean")
