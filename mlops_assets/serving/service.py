"""The one BentoML service that every model is served by.

Inside a Bento it serves the bundle that the Bento carries; run from the source tree it follows the release
records. Only BentoML imports this module, so its imports are not deferred.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import bentoml
import uvicorn.config
from _bentoml_sdk import Service

from mlops_assets.serving.app import FrontDoor, Serving, create_app
from mlops_assets.serving.logs import log_as_json

SWITCH_SECONDS = 0.0005  # how long the log's thread may keep an answer waiting; Python's default is ten times that
GARBAGE = (50_000, 20, 100)  # objects until it is looked for; an answer leaves no cycles, and is itself let go at once


def open_serving() -> Serving:
    serving = _serving()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what was imported stays: going through it again would stop every answer for tens of milliseconds
    gc.set_threshold(*GARBAGE)
    return serving


def _serving() -> Serving:
    bento = Endpoint.bento  # type: ignore[attr-defined]  # the decorator makes it a Service, set when a Bento is loaded
    if bento is None:
        return Serving.following()
    return Serving.alone(Path(bento.path_of("src"), "bundle"), str(bento.tag), bento.info.labels.get("version", ""))


app = create_app(open_serving)
# BentoML passes no protocol on to uvicorn, which looks up the one it takes by itself here.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "mlops_assets.serving.server.prompt_protocol:PromptProtocol"


class WithFrontDoor(Service[Any]):
    """A service whose predictions do not pass BentoML's middlewares."""

    def to_asgi(self, is_main: bool = True) -> Any:
        log_as_json()  # from here on it is a process that serves
        return FrontDoor(app, super().to_asgi(is_main))


@bentoml.service(
    name="endpoint",
    service_class=WithFrontDoor,
    workers=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app)
class Endpoint:
    """Models over HTTP; see /openapi.json for those that are served now."""

    def __is_ready__(self) -> bool:
        return not app.state.serving.releases.not_ready()
