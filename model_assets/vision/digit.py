"""Which digit is on the image? The same convolutional net twice: fitted by PyTorch, and by MLX."""

from __future__ import annotations

from datetime import timedelta

from feature_assets.vision.digits import HEIGHT, OWNERS, WIDTH, digits, weekly
from mlops_assets import Gate, ModelPipeline, Monitor, TimeSplit
from mlops_assets.trainers import MLXImageClassifier, TorchImageClassifier

NET = {
    "image": (HEIGHT, WIDTH),
    "channels": (32, 64),
    "hidden": (128,),
    "learning_rate": 0.002,
    "weight_decay": 0.05,
    "epochs": 30,
}


digit = ModelPipeline(
    name="digit",
    team="vision",
    description="The digit on a scanned image of 8 by 8 pixels, 0 to 9, by PyTorch.",
    owners=OWNERS,
    labels=digits,
    label="digit",
    features=[],
    trainer=TorchImageClassifier(**NET),
    cutoffs=weekly,
    split=TimeSplit(holdout=timedelta(days=5), validation=timedelta(days=4)),
    gate=Gate(metric="top1_accuracy", at_least=0.97, beats_champion_by=0.0),
    monitor=Monitor(window=timedelta(days=3), min_rows=150, metric_drop=0.03, cooldown=timedelta(days=7)),
)

digit_mlx = digit.with_(
    name="digit_mlx",
    description="The digit on a scanned image of 8 by 8 pixels, 0 to 9, by MLX.",
    trainer=MLXImageClassifier(**NET),
)
