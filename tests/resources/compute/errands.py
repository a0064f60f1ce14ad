"""Work for the tests of compute: what well-behaved work never does."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

Arguments = dict[str, Any]


def fail(arguments: Arguments) -> Arguments:
    _count(arguments)
    raise ValueError(arguments["message"])


def talk(arguments: Arguments) -> Arguments:
    logging.getLogger("mlops_assets.training").info(arguments["say"])
    return {}


def die(arguments: Arguments) -> Arguments:
    os.kill(os.getpid(), arguments["signal"])
    time.sleep(10)
    return {}


def die_at_first(arguments: Arguments) -> Arguments:
    begun = _count(arguments)
    if begun == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return {"begun": begun}


def leave(arguments: Arguments) -> Arguments:
    _count(arguments)
    os._exit(arguments["code"])


def touch(arguments: Arguments) -> Arguments:
    Path(arguments["path"]).touch()
    return {}


def tell_and_wait(arguments: Arguments) -> Arguments:
    Path(arguments["path"]).write_text(str(os.getpid()))
    time.sleep(120)
    return {}


def _count(arguments: Arguments) -> int:
    """How often work that is given a path was begun."""
    if "path" not in arguments:
        return 1
    with Path(arguments["path"]).open("a+") as told:
        told.write(".")
        told.seek(0)
        return len(told.read())


def ask(path: str, kind: str = "subprocess", address: str = "") -> None:
    """An asset's run, in this process, whose work waits in another."""
    import dagster as dg

    from resources.compute import ComputeResource

    @dg.asset
    def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> None:
        compute.run(f"{__name__}:tell_and_wait", {"path": path}, context)

    dg.materialize([errand], resources={"compute": ComputeResource(kind=kind, address=address)})


def run(entrypoint: str, directory: str) -> None:
    """An asset's run, in this process, that gets work done on Ray; its result lies in `got.json`."""
    import dagster as dg

    from resources.compute import ComputeResource

    @dg.asset
    def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
        got = compute.run(entrypoint, {"path": f"{directory}/told"}, context)
        Path(directory, "got.json").write_text(json.dumps(got))
        return dg.MaterializeResult()

    dg.materialize([errand], resources={"compute": ComputeResource(kind="ray")})


def look_around(arguments: Arguments) -> Arguments:
    """The cluster that this work runs on: its processes, their ports, its directory, its token."""
    import psutil
    import ray

    directory = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    ours = [one for one in psutil.process_iter() if str(directory) in " ".join(_command(one))]
    ports = [
        (port.laddr.ip, port.laddr.port)
        for process in ours
        for port in process.net_connections(kind="inet")
        if port.status == psutil.CONN_LISTEN
    ]
    return {
        "ports": ports,
        "processes": [process.pid for process in ours],
        "directory": str(directory),
        "mode": directory.stat().st_mode & 0o777,
        "token": os.environ.get("RAY_AUTH_MODE") == "token",
    }


def exit_by(arguments: Arguments) -> Arguments:
    raise SystemExit(arguments["code"])


def threads(arguments: Arguments) -> Arguments:
    from mlops_assets.trainers import threads

    return {"threads": threads()}


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_at_first(arguments: Arguments) -> Arguments:
    begun = _count(arguments)
    if begun == 1:
        time.sleep(600)
    return {"begun": begun}
