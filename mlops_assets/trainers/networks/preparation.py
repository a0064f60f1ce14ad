"""How a row becomes a net's input: what a table's columns or an image's pixels are brought to, before any layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

LIMIT = 10.0  # standard deviations: a value beyond is taken for one at the edge, else one typing error decides
Image = tuple[int, int, int]
"""Height, width, channels. A row holds an image's numbers line by line, the channels of a pixel side by side."""


@dataclass(frozen=True)
class Preparation:
    """Of a table: in standard deviations from the training mean of the column, and which were missing."""

    mean: np.ndarray
    scale: np.ndarray
    image: Image | None = None

    @classmethod
    def fit(cls, x: np.ndarray) -> Self:
        """From training rows; a column without values or without spread stays 0."""
        import numpy as np

        known = ~np.isnan(x)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, x, 0).sum(axis=0, dtype=np.float64) / count
        spread = np.sqrt((np.where(known, x - mean, 0) ** 2).sum(axis=0) / count)
        return cls(mean.astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32))

    @cached_property
    def columns(self) -> int:
        return len(self.mean)

    @property
    def inputs(self) -> int:
        """How many numbers a row becomes."""
        return 2 * self.columns

    @property
    def edges(self) -> list[np.ndarray]:
        """The values of each column around which a net's answer may turn."""
        import numpy as np

        spread = np.array([-LIMIT - 1, -2.0, -0.5, 0.5, 2.0, LIMIT + 1])
        each = zip(self.mean, self.scale, strict=True)
        return [mean + scale * spread for mean, scale in each] * (self.columns // len(self.mean))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) with NaN to (n, 2 * columns) without: the values, then 1 where one was missing."""
        import numpy as np

        missing = np.isnan(x)
        return np.concatenate([self._scaled(x, missing), missing.astype(np.float32)], axis=1)

    def graph(self) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
        """The same in ONNX, from `x` to `layer0`, and its constants."""
        from mlops_assets.trainers.graphs.graph import node

        nodes = [
            *self._nodes("x"),
            node("Cast", ["missing"], "flags", to=1),
            node("Concat", ["values", "flags"], "layer0", axis=1),
        ]
        return nodes, self._constants()

    def _scaled(self, x: np.ndarray, missing: np.ndarray) -> np.ndarray:
        import numpy as np

        scaled: np.ndarray = np.clip((np.where(missing, self.mean, x) - self.mean) / self.scale, -LIMIT, LIMIT)
        return scaled

    def _nodes(self, given: str) -> list[NodeProto]:
        """From `given` to `values`, with `missing` on the way."""
        from mlops_assets.trainers.graphs.graph import node

        return [
            node("IsNaN", [given], "missing"),
            node("Where", ["missing", "mean", given], "whole"),
            node("Sub", ["whole", "mean"], "centred"),
            node("Div", ["centred", "scale"], "scaled"),
            node("Clip", ["scaled", "low", "high"], "values"),
        ]

    def _constants(self) -> dict[str, np.ndarray]:
        import numpy as np

        limits = {"low": np.array(-LIMIT, np.float32), "high": np.array(LIMIT, np.float32)}
        return {"mean": self.mean[np.newaxis, :], "scale": self.scale[np.newaxis, :], **limits}


@dataclass(frozen=True)
class ImagePreparation(Preparation):
    """Of an image: one mean and one deviation for all pixels of a channel, so that a shape is the same anywhere.

    A missing pixel is the mean; whole channels come one after the other, as convolutions read them.
    """

    image: Image = (1, 1, 1)

    @classmethod
    def of(cls, x: np.ndarray, image: Image) -> Self:
        """From training rows, each an image of that size."""
        whole = Preparation.fit(x.reshape(-1, image[2]))
        return cls(whole.mean, whole.scale, image)

    @cached_property
    def columns(self) -> int:
        return prod(self.image)

    @property
    def inputs(self) -> int:
        return self.columns

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, height * width * channels) with NaN to (n, channels * height * width) without."""
        import numpy as np

        pixels = x.reshape(len(x), -1, self.image[2])
        scaled = self._scaled(pixels, np.isnan(pixels))
        return np.ascontiguousarray(scaled.transpose(0, 2, 1).reshape(len(x), -1))

    def graph(self) -> tuple[list[NodeProto], dict[str, Any]]:
        """From `x` to `layer0`, (n, channels, height, width)."""
        import numpy as np

        from mlops_assets.trainers.graphs.graph import node

        nodes = [
            node("Reshape", ["x", "image"], "pixels"),
            *self._nodes("pixels"),
            node("Transpose", ["values"], "layer0", perm=[0, 3, 1, 2]),
        ]
        return nodes, {**self._constants(), "image": np.array([-1, *self.image])}
