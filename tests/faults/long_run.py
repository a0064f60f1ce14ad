"""A code location of one asset, which waits in the pool `training` until a file `go` lies in MLOPS_HOME."""

import os
import time
from pathlib import Path

import dagster as dg

HOME = Path(os.environ["MLOPS_HOME"])


@dg.asset(pool="training")
def held() -> None:
    """One line in `begun` for each time that it begins; ends when it may."""
    with (HOME / "begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not (HOME / "go").exists():
        time.sleep(0.05)


hold = dg.define_asset_job("hold", selection=[held])


@dg.sensor(job=hold, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def asks() -> dg.RunRequest:
    """Always for the same thing."""
    return dg.RunRequest(run_key="the same thing")


defs = dg.Definitions(assets=[held], jobs=[hold], sensors=[asks], executor=dg.in_process_executor)
