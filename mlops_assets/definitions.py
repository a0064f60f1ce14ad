"""The code location: gathers what the teams declared; computes nothing.

Loading it imports no heavy library, so that the UI, the daemon and every run start in about the time
of `import dagster`.
"""

import atexit
import gc
import time
import warnings

import dagster as dg

# Single-run backfills, data versions and code references are marked beta in Dagster; we rely on them knowingly.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from mlops_assets.catalog import gather  # noqa: E402  the filter above must come first
from mlops_assets.links import candidate  # noqa: E402
from mlops_assets.pipeline import model_definitions, table_definitions  # noqa: E402
from mlops_assets.promotion import Promotion  # noqa: E402
from mlops_assets.upkeep import upkeep  # noqa: E402
from resources.environment import quiet_telemetry, resources_for  # noqa: E402
from sensors.alerts import alerts_sensor  # noqa: E402
from sensors.automation import automation_sensor  # noqa: E402
from sensors.events import events_sensor  # noqa: E402
from sensors.orphans import orphans_sensors  # noqa: E402
from sensors.run_failure import run_failure_sensor, run_recovered_sensor  # noqa: E402
from sensors.thermal import thermal_sensor  # noqa: E402

# Python's last garbage collection walks every module once more: seconds at the end of a run that trained, for nothing.
atexit.register(gc.freeze)
quiet_telemetry()
catalog = gather()
resources, models = resources_for(), catalog.models.values()

defs = dg.Definitions.merge(
    table_definitions(catalog),
    *(model_definitions(model) for model in models),
    *catalog.components,
    upkeep(),
    dg.Definitions(
        resources={**resources, "promotion": Promotion.of(resources)},
        sensors=[
            automation_sensor,
            events_sensor,
            alerts_sensor,
            run_failure_sensor,
            run_recovered_sensor,
            *(thermal_sensor(time.time, pool=pool) for pool in sorted({"training", *map(candidate.pool, models)})),
            *orphans_sensors(time.time),
        ],
        executor=dg.in_process_executor,  # a process per trivial step costs six times the work itself
    ),
)
