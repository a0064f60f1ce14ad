"""One declaration gives a model its whole life, as Dagster assets.

The names below are what a feature or model file needs; each is loaded from its module when first
used, so that the serving process, which imports parts of this package, never imports Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_assets.declarations import (
        DeclarationError as DeclarationError,
        Entity as Entity,
        FeatureSelection as FeatureSelection,
        FeatureView as FeatureView,
        FloatRange as FloatRange,
        Gate as Gate,
        IntRange as IntRange,
        Labels as Labels,
        ModelPipeline as ModelPipeline,
        Monitor as Monitor,
        Search as Search,
        Serve as Serve,
        Source as Source,
        TimeSplit as TimeSplit,
        feature_view as feature_view,
        labels as labels,
        source as source,
    )
    from mlops_assets.fields import (
        Bool as Bool,
        Field as Field,
        Float64 as Float64,
        Int64 as Int64,
        String as String,
        UnixTimestamp as UnixTimestamp,
    )

_HOMES = {
    "mlops_assets.fields": ("Bool", "Field", "Float64", "Int64", "String", "UnixTimestamp"),
    "mlops_assets.declarations": (
        "DeclarationError", "Entity", "FeatureSelection", "FeatureView", "FloatRange", "Gate", "IntRange", "Labels",
        "ModelPipeline", "Monitor", "Search", "Serve", "Source", "TimeSplit", "feature_view", "labels", "source",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mlops_assets' has no attribute {name!r} (it has: {', '.join(__all__)})")
    return getattr(import_module(_HOME_OF[name]), name)
