"""One declaration gives a model its whole life, as Dagster assets.

The names below are what a feature or model file needs; each is loaded from its module when first
used, so that the serving process, which imports parts of this package, never imports Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_assets.declarations import (
        Approval as Approval,
    )
    from mlops_assets.declarations import (
        Checkpoint as Checkpoint,
    )
    from mlops_assets.declarations import (
        Constant as Constant,
    )
    from mlops_assets.declarations import (
        DeclarationError as DeclarationError,
    )
    from mlops_assets.declarations import (
        Entity as Entity,
    )
    from mlops_assets.declarations import (
        FeatureSelection as FeatureSelection,
    )
    from mlops_assets.declarations import (
        FeatureView as FeatureView,
    )
    from mlops_assets.declarations import (
        FloatRange as FloatRange,
    )
    from mlops_assets.declarations import (
        Gate as Gate,
    )
    from mlops_assets.declarations import (
        IntRange as IntRange,
    )
    from mlops_assets.declarations import (
        Labels as Labels,
    )
    from mlops_assets.declarations import (
        MeanOverEntities as MeanOverEntities,
    )
    from mlops_assets.declarations import (
        ModelPipeline as ModelPipeline,
    )
    from mlops_assets.declarations import (
        Monitor as Monitor,
    )
    from mlops_assets.declarations import (
        OnDemandView as OnDemandView,
    )
    from mlops_assets.declarations import (
        Parity as Parity,
    )
    from mlops_assets.declarations import (
        Popularity as Popularity,
    )
    from mlops_assets.declarations import (
        PostProcessing as PostProcessing,
    )
    from mlops_assets.declarations import (
        Resources as Resources,
    )
    from mlops_assets.declarations import (
        Search as Search,
    )
    from mlops_assets.declarations import (
        Serve as Serve,
    )
    from mlops_assets.declarations import (
        Source as Source,
    )
    from mlops_assets.declarations import (
        TimeSplit as TimeSplit,
    )
    from mlops_assets.declarations import (
        feature_view as feature_view,
    )
    from mlops_assets.declarations import (
        labels as labels,
    )
    from mlops_assets.declarations import (
        on_demand as on_demand,
    )
    from mlops_assets.declarations import (
        postprocess as postprocess,
    )
    from mlops_assets.declarations import (
        source as source,
    )
    from mlops_assets.fields import (
        Bool as Bool,
    )
    from mlops_assets.fields import (
        Field as Field,
    )
    from mlops_assets.fields import (
        Float64 as Float64,
    )
    from mlops_assets.fields import (
        Float64Array as Float64Array,
    )
    from mlops_assets.fields import (
        Int64 as Int64,
    )
    from mlops_assets.fields import (
        String as String,
    )
    from mlops_assets.fields import (
        UnixTimestamp as UnixTimestamp,
    )

__all__ = [
    "Approval",
    "Bool",
    "Checkpoint",
    "Constant",
    "DeclarationError",
    "Entity",
    "FeatureSelection",
    "FeatureView",
    "Field",
    "Float64",
    "Float64Array",
    "FloatRange",
    "Gate",
    "Int64",
    "IntRange",
    "Labels",
    "MeanOverEntities",
    "ModelPipeline",
    "Monitor",
    "OnDemandView",
    "Parity",
    "Popularity",
    "PostProcessing",
    "Resources",
    "Search",
    "Serve",
    "Source",
    "String",
    "TimeSplit",
    "UnixTimestamp",
    "feature_view",
    "labels",
    "on_demand",
    "postprocess",
    "source",
]
_FIELDS = {"Bool", "Field", "Float64", "Float64Array", "Int64", "String", "UnixTimestamp"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mlops_assets' has no attribute {name!r} (it has: {', '.join(__all__)})")
    return getattr(import_module(f"mlops_assets.{'fields' if name in _FIELDS else 'declarations'}"), name)
