"""The HTTP face of the serving process: many models, one app.

    POST /{team}/{model}/predict   GET /{team}/{model}/release   GET /healthz, /readyz, /openapi.json, /docs

The predict route is a plain ASGI endpoint over our own strict validation: FastAPI's cost per request is
several times that of the answer, and its errors do not say what to do. Only used by serving processes and
checks, hence FastAPI at the top.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import anyio.to_thread
import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response

from mlops_assets.serving.bundle import Release
from mlops_assets.serving.openapi import openapi
from mlops_assets.serving.plan import EmptyStore, Looked, Store, look_up
from mlops_assets.serving.prediction_log import Answered, NoLog, PredictionLog, PredictionWriter
from mlops_assets.serving.releases import FollowedReleases, OneRelease, Releases, Served, Traffic
from mlops_assets.serving.request import (
    MAX_BODY,
    InvalidRequestError,
    Problem,
    Question,
    problems,
    read_question,
    request_id,
)
from resources.bentos import BentoStore
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, online_store_url
from resources.releases import ReleaseStore, Variant

INLINE_ROWS = 32  # more than a thread hop costs; beyond it the event loop would keep others waiting


@dataclass(frozen=True)
class Serving:
    """What the app answers with: the releases, the online store and the log."""

    releases: Releases
    store: Store
    log: PredictionWriter | NoLog

    @classmethod
    def following(cls) -> Serving:
        """All that MLOPS_HOME holds, for the models of MLOPS_ENDPOINTS (comma list) or every released one."""
        names = [name.strip() for name in os.environ.get("MLOPS_ENDPOINTS", "").split(",") if name.strip()]
        releases = FollowedReleases(ReleaseStore(), BentoStore().path, names)
        return cls(releases, PackedStore.open(online_store_url()), PredictionLog().writer())

    @classmethod
    def alone(cls, bundle: Path, tag: str, version: str) -> Serving:
        """One bundle; the online store and the log only where the environment names them."""
        platform = "MLOPS_HOME" in os.environ
        store = PackedStore.open(online_store_url()) if platform or "MLOPS_ONLINE_STORE" in os.environ else EmptyStore()
        log = PredictionLog().writer() if platform else NoLog()
        return cls(OneRelease(Release.load(bundle), tag, version), store, log)

    def close(self) -> None:
        self.releases.close()
        self.log.close()

    def released(self, model: str) -> Traffic:
        """The traffic of a model; 404 for one that is unknown, 503 for one that has no release."""
        traffic = self.state(model).traffic
        if traffic is None:
            raise InvalidRequestError.of(
                f"{model} has no release that can answer", f"Look at /{model}/release for the reason.", "model", 503
            )
        return traffic

    def state(self, model: str) -> Served:
        served = self.releases.served(model)
        if served is None:
            known = ", ".join(self.releases.models()) or "none"
            raise InvalidRequestError.of(f"unknown model {model}", f"Ask one of: {known}.", "model", 404)
        return served

    def answer(self, model: str, traffic: Traffic, question: Question) -> list[Answered]:
        """One answer per row, in order. InvalidRequestError when any row is not what its release asks for."""
        chosen = [_choose(model, traffic, row) for row in question.rows]
        _validate(question.rows, chosen)
        answers: dict[int, Answered] = {}
        for variant, release in traffic.shares:
            rows = {i: question.rows[i] for i, (asked, _) in enumerate(chosen) if asked is variant}
            if rows:
                looked = self._looked(release, list(rows.values()), question)
                predictions = release.predict([one.values for one in looked])
                for (i, row), one, prediction in zip(rows.items(), looked, predictions, strict=True):
                    answers[i] = _answered(model, variant, release, row, question, one, prediction)
        return [answers[i] for i in range(len(chosen))]

    def _looked(self, release: Release, rows: list[dict[str, Any]], question: Question) -> list[Looked]:
        """Inputs from the store by key, or as the row brought them."""
        plan = release.plan
        found = iter(look_up(plan, self.store, [row for row in rows if "features" not in row], question.at))
        return [
            Looked([row["features"][name] for name in plan.inputs], {}, []) if "features" in row else next(found)
            for row in rows
        ]


def _choose(model: str, traffic: Traffic, row: dict[str, Any]) -> tuple[Variant, Release]:
    return traffic.choose(model, [row.get(name) for name in traffic.champion.plan.join_keys])


def _validate(rows: Sequence[dict[str, Any]], chosen: Sequence[tuple[Variant, Release]]) -> None:
    found = [
        replace(problem, row=index)
        for index, (row, (_, release)) in enumerate(zip(rows, chosen, strict=True))
        for problem in problems(row, release.plan, release.schema)
    ]
    if found:
        raise InvalidRequestError(found)


def _answered(
    model: str,
    variant: Variant,
    release: Release,
    row: dict[str, Any],
    question: Question,
    looked: Looked,
    value: float,
) -> Answered:
    plan = release.plan
    return Answered(
        model=model,
        request_id=request_id(row, plan) or uuid4().hex,
        at=question.at,
        release=variant.release,
        version=variant.version,
        variant=variant.role,
        keys={name: row[name] for name in plan.join_keys if name in row},
        inputs=plan.inputs,
        looked=looked,
        prediction=value,
    )


def create_app(open_serving: Callable[[], Serving]) -> FastAPI:
    """The app; `open_serving` is called when it starts, and what it gave is closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.serving = await anyio.to_thread.run_sync(open_serving)
        yield
        await anyio.to_thread.run_sync(app.state.serving.close)

    app = FastAPI(title="Models", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = lambda: openapi(app.state.serving.releases)  # type: ignore[method-assign]
    app.add_exception_handler(InvalidRequestError, _refused)  # type: ignore[arg-type]  # typed for any Exception
    app.add_exception_handler(OnlineStoreUnavailableError, _unavailable)
    app.add_route("/healthz", _healthz, methods=["GET"])
    app.add_route("/readyz", _readyz, methods=["GET"])
    app.add_route("/docs", _docs, methods=["GET"])
    app.add_route("/{team}/{model}/predict", _predict, methods=["POST"])
    app.add_route("/{team}/{model}/release", _release, methods=["GET"])
    return app


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


async def _predict(request: Request) -> Response:
    started = perf_counter()
    serving: Serving = request.app.state.serving
    model = _model(request)
    traffic = serving.released(model)
    question = read_question(await _body(request))
    if len(question.rows) <= INLINE_ROWS:
        answers = serving.answer(model, traffic, question)
    else:
        answers = await anyio.to_thread.run_sync(serving.answer, model, traffic, question)
    latency = (perf_counter() - started) * 1000
    for answer in answers:
        answer.latency_ms = latency
    serving.log.write(answers)
    return _json({"model": model, "predictions": [_shown(answer) for answer in answers]})


async def _release(request: Request) -> Response:
    return _json(request.app.state.serving.state(_model(request)).to_json())


async def _healthz(_: Request) -> Response:
    return _json({"status": "alive"})


async def _readyz(request: Request) -> Response:
    releases: Releases = request.app.state.serving.releases
    waiting = releases.not_ready()
    return _json({"ready": not waiting, "models": releases.models(), "not_ready": waiting}, 503 if waiting else 200)


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


async def _unavailable(_: Request, error: Exception) -> Response:
    """Without the online store no features can be looked up; rows that bring their own are still answered."""
    problem = InvalidRequestError.of(str(error), "Ask again in a moment, or send all inputs under features.", None, 503)
    answer = _json(problem.to_json(), problem.status)
    answer.headers["Retry-After"] = "1"
    return answer


def _model(request: Request) -> str:
    return f"{request.path_params['team']}/{request.path_params['model']}"


async def _body(request: Request) -> bytes:
    """The body, read no further than the limit whatever its header claims."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise InvalidRequestError([Problem("the body is over 8 MiB", "Send fewer rows in a request.")], 413)
        parts.append(part)
    return b"".join(parts)


def _shown(answer: Answered) -> dict[str, Any]:
    return {
        "request_id": answer.request_id,
        "prediction": answer.prediction,
        "release": answer.release,
        "version": answer.version,
        "variant": answer.variant,
        "fallbacks": [asdict(fallback) for fallback in answer.looked.fallbacks],
    }


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
