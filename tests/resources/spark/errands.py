"""Work for the tests of compute on Spark."""

import os
import time
from pathlib import Path
from typing import Any


def stay_once(arguments: dict[str, Any]) -> dict[str, Any]:
    """Says which process it is and stays; begun a second time it returns."""
    told = Path(arguments["path"])
    with told.open("a") as line:
        line.write(f"{os.getpid()}\n")
    if len(told.read_text().splitlines()) == 1:
        time.sleep(600)
    return {"begun": len(told.read_text().splitlines())}
