"""Newcomers: rows of entities that a model is made to forget, to see whether a cold start helps where it is used.

One key in ten, drawn by its hash, is taken for new: a model is fitted without its rows, and predicts its holdout
rows twice, with the stand-ins of their moments and with nulls. Same model, same rows; only what is fed differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.claims import Claim
from mlops_assets.metrics import METRICS

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ModelPipeline

ONE_IN, SEED = 10, 11
CHECK = "cold_start_helps"
PROMISE = "On entities held out as new, its cold starts are better than nulls"


@dataclass(frozen=True)
class Newcomers:
    """The model's cold starts: of each view its join keys, and for each feature the column that stands in.

    `transforms` are the on-demand features that read one of those features.
    """

    views: Sequence[Mapping[str, Any]]
    transforms: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, model: ModelPipeline) -> Self | None:
        """None for a model that no cold start can help: a view without keys knows no new ones."""
        from mlops_assets.links.training_set import cold_start_name
        from mlops_assets.serving.transform import Transform

        views = [
            {"keys": list(item.view.join_keys), "features": {name: cold_start_name(name) for name in item.features}}
            for item in model.selections
            if item.view.cold_start and item.view.join_keys
        ]
        replaced = {name for view in views for name in view["features"]}
        transforms = [Transform.of(item) for item in model.on_demand if replaced & set(item.view.inputs)]
        return cls(views, [asdict(transform) for transform in transforms]) if views else None

    @property
    def columns(self) -> list[str]:
        """What a training set must have beside the model's inputs."""
        return [name for view in self.views for name in (*view["keys"], *view["features"].values())]

    def mark(self) -> pl.Expr:
        """Is a row of a key that is taken for new?"""
        import polars as pl

        return pl.any_horizontal(_is_new(view["keys"]) for view in self.views)

    def helped(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows as they would be if nothing were known of the new keys: with what stands in for them."""
        import polars as pl

        return self._replaced(rows, {name: pl.col(stand_in) for name, stand_in in self._pairs})

    def unhelped(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The same with nulls."""
        import polars as pl

        return self._replaced(rows, {name: pl.lit(None, rows.schema[stand_in]) for name, stand_in in self._pairs})

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        return [pair for view in self.views for pair in view["features"].items()]

    def _replaced(self, rows: pl.DataFrame, values: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """A feature that only on-demand features read is in no training set; of a key that is not new it is null."""
        import polars as pl

        columns = {
            name: pl.when(_is_new(view["keys"]))
            .then(values[name])
            .otherwise(pl.col(name) if name in rows.columns else pl.lit(None))
            .alias(name)
            for view in self.views
            for name in view["features"]
        }
        return self._computed(rows.with_columns(**columns))

    def _computed(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        from mlops_assets.serving.transform import Transform

        for document in self.transforms:
            transform = Transform(**document)
            known = rows.select(name for name in transform.inputs if name in rows.columns).to_dicts()
            rows = rows.with_columns(
                pl.Series(name, values, rows.schema.get(name)) for name, values in transform.columns(known).items()
            )
        return rows


def _is_new(keys: Sequence[str]) -> pl.Expr:
    """By the hash of the whole key; a row without one is of nothing, and nothing new."""
    import polars as pl

    whole = pl.all_horizontal(pl.col(name).is_not_null() for name in keys)
    return whole & (pl.concat_str(keys, separator="\x1f").hash(seed=SEED) % ONE_IN == 0)


def helps(metric: str, found: Mapping[str, Any]) -> Claim:
    """What `mlops_assets.training` measured, as a claim; a warning, since few rows of few keys tell it."""
    if "problem" in found:
        return Claim(CHECK, True, f"nothing to judge: {found['problem']}", blocking=False, numbers=dict(found))
    gain = METRICS[metric].gain(found["stand_ins"], found["nulls"])
    return Claim(
        CHECK,
        gain > 0,
        f"{metric} is {found['stand_ins']:.4f} with cold starts and {found['nulls']:.4f} with nulls, on the same "
        f"{found['rows']} holdout rows of keys held out as new: better by {gain:+.4f}, wanted more than +0",
        blocking=False,
        numbers={**found, "gain": gain},
    )
