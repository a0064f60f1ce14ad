"""Work for the tests of compute: what well-behaved work never does."""

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
