"""The code location of the year: one model and all that it reads, with raw tables that read what was delivered."""

from __future__ import annotations

import dataclasses
import time
import warnings

import dagster as dg

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from mlops_assets.catalog import Catalog, Table, gather  # noqa: E402  the filter above must come first
from mlops_assets.declarations import ModelPipeline, Source  # noqa: E402
from mlops_assets.pipeline import model_definitions, table_definitions  # noqa: E402
from mlops_assets.promotion import Promotion  # noqa: E402
from mlops_assets.year.upstream import RAW, TEAM, delivered  # noqa: E402
from resources.environment import quiet_telemetry, resources_for  # noqa: E402
from sensors.alerts import alerts_sensor  # noqa: E402
from sensors.automation import automation_sensor  # noqa: E402
from sensors.events import events_sensor  # noqa: E402
from sensors.run_failure import run_failure_sensor  # noqa: E402
from sensors.thermal import thermal_sensor  # noqa: E402

MODEL = "flights/late_arrival"


def read_by(catalog: Catalog, model: ModelPipeline) -> Catalog:
    """The model and the tables that it is made from, directly or not, each raw one from the upstream."""
    read: list[Table] = [model.labels, *(item.view for item in model.selections)]
    found = {table.id: table for table in read}
    found |= {view.stand_in.id: view.stand_in for item in model.selections if (view := item.view).stand_in}
    waiting = list(found.values())
    while waiting:
        fresh = [table for _, table in catalog.inputs(waiting.pop()) if table.id not in found]
        found |= {table.id: table for table in fresh}
        waiting += fresh
    raw = {f"{TEAM}/{name}" for name in RAW}
    tables: dict[str, Table] = {
        name: delivered(table) if isinstance(table, Source) and name in raw else table for name, table in found.items()
    }
    return dataclasses.replace(catalog, tables=tables, models={model.id: model}, components=())


quiet_telemetry()
model = gather().model(MODEL)
catalog = read_by(gather(), model)
resources = resources_for()
defs = dg.Definitions.merge(
    table_definitions(catalog),
    model_definitions(model),
    dg.Definitions(
        resources={**resources, "promotion": Promotion.of(resources)},
        sensors=[automation_sensor, alerts_sensor, events_sensor, run_failure_sensor, thermal_sensor(time.time)],
        executor=dg.in_process_executor,
    ),
)
