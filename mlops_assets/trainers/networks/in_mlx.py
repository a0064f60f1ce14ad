"""A net in MLX's own arrays: built from its numbers, and read back from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.networks.network import KERNEL, Layer, Network
from mlops_assets.trainers.networks.preparation import Image

if TYPE_CHECKING:
    import numpy as np


CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def arrays(network: Network) -> list[dict[str, Any]]:
    """Each layer's weights; MLX has the channels of an image, and of a kernel, last."""
    import mlx.core as mx
    import numpy as np

    def turned(layer: Layer) -> np.ndarray:
        return np.ascontiguousarray(layer.weight.transpose(CHANNELS_LAST)) if layer.convolves else layer.weight

    return [{"weight": mx.array(turned(layer)), "bias": mx.array(layer.bias)} for layer in network.layers]


def forward(weights: Sequence[dict[str, Any]], x: Any, image: Image | None = None) -> Any:
    """What the last layer gives for prepared rows; images come flat, channel by channel."""
    import mlx.core as mx

    *hidden, last = weights
    if image:
        height, width, planes = image
        x = x.reshape(-1, planes, height, width).transpose(CHANNELS_LAST)
    for layer in hidden:
        if layer["weight"].ndim > 2:
            x = _halved(mx.maximum(mx.conv2d(x, layer["weight"], padding=KERNEL // 2) + layer["bias"], 0))
        else:
            x = mx.maximum(_flat(x) @ layer["weight"].T + layer["bias"], 0)
    return _flat(x) @ last["weight"].T + last["bias"]


def _halved(x: Any) -> Any:
    """The largest of each two by two; an odd last line or column is left out."""
    rows, height, width, planes = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(rows, height // 2, 2, width // 2, 2, planes).max(axis=(2, 4))


def _flat(x: Any) -> Any:
    """Images channel by channel, as every net here has them."""
    return x.transpose(CHANNELS_FIRST).reshape(x.shape[0], -1) if x.ndim > 2 else x


def layers(held: Sequence[dict[str, Any]]) -> tuple[Layer, ...]:
    """A copy of the weights of arrays."""
    import numpy as np

    def told(weight: Any) -> np.ndarray:
        numbers = np.array(weight)
        return np.ascontiguousarray(numbers.transpose(CHANNELS_FIRST)) if numbers.ndim > 2 else numbers

    return tuple(Layer(told(layer["weight"]), np.array(layer["bias"])) for layer in held)


def criterion(task: str) -> Callable[[Any, Any], Any]:
    """The mean loss of what a net gives against the targets of a task."""
    import mlx.core as mx
    from mlx import nn

    if task == "multiclass":
        entropy = partial(nn.losses.cross_entropy, reduction="mean")
        return lambda logits, classes: entropy(logits, classes[:, 0].astype(mx.int32))
    loss = nn.losses.binary_cross_entropy if task == "classification" else nn.losses.mse_loss
    return partial(loss, reduction="mean")
