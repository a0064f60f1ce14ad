"""`mlops compute`: the kinds of machine that models train on, one of them tried, and what Kubernetes would be told."""

import time
from typing import Annotated

import typer

from mlops_assets.terminal import console, print_table

compute = typer.Typer(no_args_is_help=True, help="The kinds of machine that models train on.")
Model = Annotated[str, typer.Argument(help="The model, as <team>/<name>, e.g. flights/late_arrival")]
Kind = Annotated[
    str, typer.Argument(help="local, subprocess, ray, ...; by default the environment's", show_default=False)
]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@compute.command()
def models() -> None:
    """What each model trains on, and what it asks for."""
    from mlops_assets.catalog import gather
    from resources.environment import resources_for

    usual = resources_for()["compute"].kind
    rows = []
    for model in gather().models.values():
        asked = model.resources
        wants = {"CPUs": asked.cpus, "GiB": asked.memory_gb, "GPUs": asked.gpus, "retries": asked.retries}
        told = ", ".join(f"{much:g} {name}" for name, much in wants.items() if much)
        rows.append([model.id, model.compute or f"{usual} (the environment's)", model.accelerator, told or "-"])
    print_table("What models are trained on", ["model", "compute", "accelerator", "asks for"], rows)


@compute.command()
def check(kind: Kind = "") -> None:
    """Have a kind of machine do work that costs nothing: is it reached, has it the same packages, how long is it?"""
    import dagster as dg

    from resources.compute import ComputeResource
    from resources.environment import resources_for

    took: list[float] = []

    @dg.asset
    def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
        started = time.monotonic()
        compute.run("copy:copy", {}, context, kind=kind or None)
        took.append(time.monotonic() - started)
        return dg.MaterializeResult()

    resource = resources_for()["compute"]
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([errand], resources={"compute": resource}, instance=instance, run_config=QUIET)
    console().print(f"{kind or resource.kind}: done in {took[0]:.1f} s, with the same packages as here")


@compute.command()
def manifest(model: Model) -> None:
    """The RayJob that a training of a model is for KubeRay (compute `ray`, MLOPS_COMPUTE_ADDRESS=kuberay:), as YAML."""
    import dagster as dg
    import yaml

    from mlops_assets.catalog import gather
    from resources.compute._kuberay import ray_job
    from resources.environment import prepare_home
    from resources.kubernetes.cluster import Cluster

    pipeline = gather().model(model)
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        cluster = Cluster.of(instance)
        job = ray_job(
            cluster, pipeline.resources.document, pipeline.id.replace("/", "-").replace("_", "-"), cluster.namespace
        )
    typer.echo(yaml.safe_dump(job, sort_keys=False))
