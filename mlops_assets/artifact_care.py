"""Weekly, the files of models are read through, so that damage is known before the file is needed; then swept.

What is damaged is told once while it lasts. What no run and no Bento refers to is deleted.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from resources.alerts import Alert, AlertResource

if TYPE_CHECKING:
    from resources.artifacts.audit import Finding

JOB = "platform__artifacts"
WEEKLY = "41 4 * * 0"
KEY = "damaged artifacts"
NAMED = 5


@dg.op(
    required_resource_keys={"mlflow", "bentos", "alerts"},
    description="Reads every version, Bento and object, tells what is damaged, and deletes what nobody refers to.",
)
def artifact_care(context: dg.OpExecutionContext) -> None:
    from mlops_assets.catalog import gather
    from resources.artifacts import audit

    stores = audit.object_stores(context.resources.mlflow)
    names = [model.registered_name for model in gather().models.values()]
    found = [
        *audit.versions(context.resources.mlflow, names),
        *audit.bentos(context.resources.bentos),
        *audit.objects(stores),
    ]
    tell([one for one in found if not one.whole], context.resources.alerts)
    gone = [store.collect() for store in stores]
    context.add_output_metadata({
        "read": len(found),
        "damaged": sum(not one.whole for one in found),
        "deleted_objects": sum(one.objects for one in gone),
        "deleted_bytes": sum(one.stored_bytes for one in gone),
    })  # fmt: skip


def tell(damaged: "Sequence[Finding]", alerts: AlertResource) -> None:
    """One alert while anything is damaged; when nothing is, the next damage is told at once."""
    if not damaged:
        alerts.resolve(KEY)
        return
    named = "; ".join(f"{one.what}: {one.problem}" for one in damaged[:NAMED])
    more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    alerts.send(
        Alert(
            f"{len(damaged)} artifacts are not what was saved",
            named + more,
            suggestion="Put the files back from a copy, or release another version: `mlops artifacts verify`.",
            key=KEY,
        )
    )


@dg.job(name=JOB, description="Read the files of models through and delete what nobody refers to, weekly.")
def artifacts_job() -> None:
    artifact_care()


weekly = dg.ScheduleDefinition(
    name=f"{JOB}_weekly",
    cron_schedule=WEEKLY,
    job=artifacts_job,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Reads the files of models through on Sundays.",
)
