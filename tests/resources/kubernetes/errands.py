"""Work for the tests of pods."""

import logging
import os
import signal
import time
from typing import Any


def say_and_die(arguments: dict[str, Any]) -> dict[str, Any]:
    logging.getLogger("mlops_assets.training").warning(arguments["say"])
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)
    return {}
