"""The HTTP face of the serving process: many models, one app.

    POST /{team}/{model}/predict   GET /{team}/{model}/release   the Open Inference Protocol under /v2
    GET /healthz, /readyz, /metrics, /openapi.json, /docs

Only used by serving processes and checks, hence FastAPI at the top.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlops_assets.serving import metrics, stages
from mlops_assets.serving.admission import Admission
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.guarded_store import GuardedStore
from mlops_assets.serving.logs import logs_access
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.openapi import openapi
from mlops_assets.serving.plan import EmptyStore, Store
from mlops_assets.serving.predict import Asked, Headers, predict
from mlops_assets.serving.prediction_log import NoLog, PredictionLog, PredictionWriter
from mlops_assets.serving.releases import OneRelease, Releases, Served
from mlops_assets.serving.releases.follower import FollowedReleases
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.v2_routes import asked as asked_by_v2
from mlops_assets.serving.wire.v2_routes import routes as v2_routes
from resources.bentos import BentoStore
from resources.online.packed_store import OnlineStoreUnavailableError, online_store_url
from resources.releases import ReleaseStore, Variant

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlops_assets.serving.answers import Answers
    from mlops_assets.serving.releases.traffic import Traffic
    from mlops_assets.serving.wire.raw import Raw
    from mlops_assets.serving.wire.replies import Part

PREDICT = re.compile(r"/([^/]+/[^/]+)/predict")
TELL_SECONDS = 1.0
THREADS = 2  # large requests answered at a time; more would only share the same processor
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What the app answers with: the releases, the online store, the log; and what one process keeps of its own."""

    releases: Releases
    store: Store
    log: PredictionWriter | NoLog
    admission: Admission = field(default_factory=Admission)
    metrics: Metrics = field(default_factory=Metrics)
    threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(THREADS))
    access_log: bool = field(default_factory=logs_access)

    @classmethod
    def following(cls) -> Serving:
        """All that MLOPS_HOME holds, for the models of MLOPS_ENDPOINTS (comma list) or every released one."""
        names = [name.strip() for name in os.environ.get("MLOPS_ENDPOINTS", "").split(",") if name.strip()]
        releases = FollowedReleases(ReleaseStore(), BentoStore().path, names)
        return cls(releases, GuardedStore.at(online_store_url()), PredictionLog().writer())

    @classmethod
    def alone(cls, bundle: Path, tag: str, version: str) -> Serving:
        """One bundle; the online store and the log only where the environment names them."""
        platform = "MLOPS_HOME" in os.environ
        store = GuardedStore.at(online_store_url()) if platform or "MLOPS_ONLINE_STORE" in os.environ else EmptyStore()
        log = PredictionLog().writer() if platform else NoLog()
        return cls(OneRelease(Release.load(bundle), tag, version), store, log)

    def close(self) -> None:
        """Answer no more: what is queued is written, and no thread is left."""
        self.releases.close()
        self.log.close()
        if isinstance(self.store, GuardedStore):  # its thread looks for the store; another's store is theirs to close
            self.store.close()

    def state(self, model: str) -> Served:
        """How a model is served; 404 for one that is unknown."""
        served = self.releases.served(model)
        if served is None:
            known = ", ".join(self.releases.models()) or "none"
            raise InvalidRequestError.of(f"unknown model {model}", f"Ask one of: {known}.", "model", 404)
        return served

    def answer(self, model: str, traffic: Traffic, raw: Raw) -> Sequence[Part]:
        """What each release says to its rows. InvalidRequestError when any row is not what its release asks for."""
        return [
            (places, self._one(variant, release, raw, places))
            if variant.role == "champion"
            else (places, self._challenged(variant, release, traffic, raw, places))
            for variant, release, places in traffic.split(model, raw)
        ]

    def _one(self, variant: Variant, release: Release, raw: Raw, places: Sequence[int] | None) -> Answers:
        return stages.answer(release, variant, release.form.read(raw, places), self.store)

    def _challenged(
        self, variant: Variant, release: Release, traffic: Traffic, raw: Raw, places: Sequence[int] | None
    ) -> Answers:
        """The challenger's answer; the champion's, marked, where it fails: a caller never pays for a trial."""
        try:
            return self._one(variant, release, raw, places)
        except OnlineStoreUnavailableError:
            raise
        # A broken challenger fails in whatever way its library fails.
        except Exception as error:
            answers = self._one(*traffic.shares[-1], raw, places)
            refused = isinstance(error, InvalidRequestError)
            logger.warning("challenger %s failed, the champion answered", variant.release, exc_info=not refused)
            answers.instead_of = variant.release
            return answers


def create_app(open_serving: Callable[[], Serving]) -> FastAPI:
    """The app; `open_serving` is called when it starts, and what it gave is closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving = app.state.serving = await anyio.to_thread.run_sync(open_serving)
        teller = asyncio.create_task(_tell(serving))
        yield
        teller.cancel()
        with suppress(asyncio.CancelledError):
            await teller
        serving.metrics.tell(serving.admission.depth)
        await anyio.to_thread.run_sync(serving.close)

    app = FastAPI(title="Models", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = lambda: openapi(app.state.serving.releases)  # type: ignore[method-assign]
    app.add_exception_handler(InvalidRequestError, _refused)  # type: ignore[arg-type]  # typed for any Exception
    app.add_route("/healthz", _healthz, methods=["GET"])
    app.add_route("/readyz", _readyz, methods=["GET"])
    app.add_route("/metrics", _metrics, methods=["GET"])
    app.add_route("/docs", _docs, methods=["GET"])
    app.router.routes.append(Route("/{team}/{model}/predict", _Predict(app), methods=["POST"]))
    app.add_route("/{team}/{model}/release", _release, methods=["GET"])
    app.router.routes.extend(v2_routes(app))
    return app


class FrontDoor:
    """ASGI that answers predictions itself and hands everything else on.

    BentoML's middlewares (tracing, its own metrics, timeouts) and two routers would stand before each answer, and cost
    several times as much.
    """

    def __init__(self, app: FastAPI, rest: Any) -> None:
        self._app = app
        self._rest = rest

    @property
    def serving(self) -> Serving:
        serving: Serving = self._app.state.serving
        return serving

    def asked(self, path: str, headers: Headers) -> Asked | None:
        """The model that a POST to `path` is for; None when it is for somebody else."""
        found = PREDICT.fullmatch(path)
        return Asked(found[1], headers) if found else asked_by_v2(path, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            asked = self.asked(scope["path"], dict(scope["headers"]))
            if asked is not None:
                await predict(self.serving, asked, receive, send)
                return
        await self._rest(scope, receive, send)


class _Predict:
    """The same route where no front door is: in tests, and in checks of a Bento."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = "{team}/{model}".format(**scope["path_params"])
        await predict(self._app.state.serving, Asked(model, dict(scope["headers"])), receive, send)


def parity(bundle: Path) -> float:
    """The largest difference between a bundle's golden predictions and what the predict route answers for them.

    Raises what `Release.load` raises. Nothing is looked up or logged. Not for use inside an event loop.
    """
    release = Release.load(bundle)
    plan, golden = release.plan, release.golden
    body = {"rows": [{"features": dict(zip(plan.inputs, row, strict=True))} for row in golden.rows]}
    app = create_app(lambda: Serving(OneRelease(release, "", ""), EmptyStore(), NoLog()))
    answer = anyio.run(_ask, app, f"/{plan.model}/predict", body)
    pairs = zip(answer["predictions"], golden.predictions, strict=True)
    return float(max(abs(now["prediction"] - then) for now, then in pairs))


async def _ask(app: FastAPI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to an app that is not served."""
    import httpx

    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        answer: dict[str, Any] = (await client.post(path, json=body)).raise_for_status().json()
        return answer


async def _tell(serving: Serving) -> None:
    """Every second: what was counted, and how old the champions are."""
    while True:
        await asyncio.sleep(TELL_SECONDS)
        serving.metrics.tell(serving.admission.depth)
        served = {model: serving.releases.peek(model) for model in serving.releases.models()}
        cutoffs = {model: _cutoff(now) for model, now in served.items()}
        serving.metrics.ages({model: cutoff for model, cutoff in cutoffs.items() if cutoff is not None})


def _cutoff(served: Served | None) -> datetime | None:
    """The moment up to which a champion knows the world, as its bundle says."""
    if served is None or served.traffic is None:
        return None
    text = served.traffic.champion.manifest.get("cutoff")
    moment = datetime.fromisoformat(text) if text else None
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None


async def _release(request: Request) -> Response:
    model = "{team}/{model}".format(**request.path_params)
    return _json(request.app.state.serving.state(model).to_json())


async def _healthz(_: Request) -> Response:
    return _json({"status": "alive"})


async def _readyz(request: Request) -> Response:
    releases: Releases = request.app.state.serving.releases
    waiting = releases.not_ready()
    return _json({"ready": not waiting, "models": releases.models(), "not_ready": waiting}, 503 if waiting else 200)


async def _metrics(request: Request) -> Response:
    serving: Serving = request.app.state.serving
    serving.metrics.tell(serving.admission.depth)
    text, media_type = metrics.page()
    return Response(text, media_type=media_type)


async def _docs(_: Request) -> Response:
    """Swagger's page, of the files that BentoML serves: FastAPI's own would load its code from elsewhere."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Models",
        swagger_js_url="/static_content/swagger-ui-bundle.js",
        swagger_css_url="/static_content/swagger-ui.css",
        swagger_favicon_url="data:,",
    )


async def _refused(_: Request, error: InvalidRequestError) -> Response:
    return _json(error.to_json(), error.status)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
