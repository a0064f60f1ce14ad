"""Where the Open Inference Protocol is mounted: see `v2` for what is said there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlops_assets.serving.predict import Asked, predict, woken
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.v2 import SERVER, V2, error_of, metadata, of_version

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

    from mlops_assets.serving.app import Serving

MODELS = "/v2/models/"


def routes(app: FastAPI) -> list[Route]:
    """All of them, for an app that keeps its Serving in `app.state.serving`."""
    infer = _Infer(app)
    model = MODELS + "{name}"
    return [
        Route("/v2", _server, methods=["GET"]),
        Route("/v2/health/live", _live, methods=["GET"]),
        Route("/v2/health/ready", _ready, methods=["GET"]),
        *(
            route
            for path in (model, model + "/versions/{version}")
            for route in (
                Route(path, _metadata, methods=["GET"]),
                Route(path + "/ready", _model_ready, methods=["GET"]),
                Route(path + "/infer", infer, methods=["POST"]),
            )
        ),
    ]


def asked(path: str, headers: Mapping[bytes, bytes]) -> Asked | None:
    """The request that an infer path makes; None for any other path."""
    if not (path.startswith(MODELS) and path.endswith("/infer")):
        return None
    name, *rest = path[len(MODELS) : -len("/infer")].split("/")
    if rest and (len(rest) != 2 or rest[0] != "versions"):
        return None
    return Asked(name.replace(".", "/", 1), dict(headers), V2(rest[1] if rest else None))


class _Infer:
    """The route, where no front door is before the app."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model, version = scope["path_params"]["name"].replace(".", "/", 1), scope["path_params"].get("version")
        await predict(self._app.state.serving, Asked(model, dict(scope["headers"]), V2(version)), receive, send)


async def _server(_: Request) -> Response:
    return _json(SERVER)


async def _live(_: Request) -> Response:
    return _json({"live": True})


async def _ready(request: Request) -> Response:
    ready = not request.app.state.serving.releases.not_ready()
    return _json({"ready": ready}, 200 if ready else 503)


async def _model_ready(request: Request) -> Response:
    """Ready when it can answer; a model that sleeps is, for it is woken by who asks."""
    serving: Serving = request.app.state.serving
    name, version = request.path_params["name"], request.path_params.get("version")
    try:
        served = serving.state(name.replace(".", "/", 1))
        if version is not None and served.traffic is not None:
            of_version(served.traffic, version)
    except InvalidRequestError as error:
        return _json(error_of(error), error.status)
    ready = served.traffic is not None or served.asleep
    return _json({"name": name, "ready": ready}, 200 if ready else 503)


async def _metadata(request: Request) -> Response:
    serving: Serving = request.app.state.serving
    name, version = request.path_params["name"], request.path_params.get("version")
    try:
        model = name.replace(".", "/", 1)
        traffic = serving.state(model).traffic or await woken(serving, model, serving.state(model))
        shown = traffic if version is None else of_version(traffic, version)
    except InvalidRequestError as error:
        return _json(error_of(error), error.status)
    versions = [variant.version for variant, _ in reversed(shown.shares)]
    return _json(metadata(shown.champion, versions))


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
