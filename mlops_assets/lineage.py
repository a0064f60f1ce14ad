"""The lineage of a model as a tree: each asset it stands on, and what was published last, when, by which run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlops_assets.declarations import ModelPipeline
from mlops_assets.links.spec import link_key

if TYPE_CHECKING:
    import dagster as dg
    from rich.tree import Tree

FACTS = ("version", "tag", "content_hash", "dagster/row_count", "revision")


def lineage_tree(model: ModelPipeline) -> Tree:
    """The endpoint at the root; below every asset the assets it is made from, each shown once."""
    import dagster as dg

    from mlops_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    with dg.DagsterInstance.get() as instance:
        return _branch(link_key(model, "endpoint"), graph, instance, seen=set())


def _branch(key: dg.AssetKey, graph: object, instance: dg.DagsterInstance, seen: set[dg.AssetKey]) -> Tree:
    from rich.tree import Tree

    parents = sorted(graph.get(key).parent_keys)  # type: ignore[attr-defined]  # RemoteAssetGraph is not public
    if key in seen:
        return Tree(f"{key.to_user_string()} [dim](above)[/]")
    seen.add(key)
    tree = Tree(f"[bold]{key.to_user_string()}[/] {_last(key, instance)}")
    for parent in parents:
        tree.add(_branch(parent, graph, instance, seen))
    return tree


def _last(key: dg.AssetKey, instance: dg.DagsterInstance) -> str:
    event = instance.get_latest_materialization_event(key)
    if event is None or event.asset_materialization is None:
        return "[dim]never materialized[/]"
    metadata = event.asset_materialization.metadata
    facts = [f"{name.removeprefix('dagster/')} {metadata[name].value}" for name in FACTS if name in metadata]
    partition = [f"partition {event.asset_materialization.partition}"] if event.asset_materialization.partition else []
    when = datetime.fromtimestamp(event.timestamp, UTC)
    return f"[dim]{', '.join([*partition, *facts, f'{when:%Y-%m-%d %H:%M} UTC', f'run {event.run_id[:8]}'])}[/]"
