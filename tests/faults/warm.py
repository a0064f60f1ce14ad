"""Imported once by the server that the dying processes are forked from: what the links import when they run."""

from importlib import import_module

for name in (
    "mlops_assets.definitions",
    "mlops_assets.gate",
    "mlops_assets.manifest",
    "mlops_assets.monitoring.drift",
    "mlops_assets.monitoring.performance",
    "mlops_assets.parity.report",
    "mlops_assets.promotion",
    "mlops_assets.scoring",
    "mlops_assets.serving.bundle",
    "mlops_assets.serving.prediction_log",
    "mlops_assets.training",
    "resources.feast",
    "resources.mlflow",
    "resources.online.feast_store",
):
    import_module(name)
