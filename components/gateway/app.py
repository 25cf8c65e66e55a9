"""Which path is answered by what. The two token-producing calls bypass the framework."""

import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from components.gateway.desk import Desk
from components.gateway.errors import ApiError, internal, invalid, of_status
from components.gateway.handlers import CompletionRoute, Scope
from components.gateway.intake import Intake, Receive
from components.gateway.node_api import node_routes
from components.gateway.rendering import Model
from components.gateway.state_api import state_router
from components.gateway.writers import Send

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """The ASGI application: straight to the hot calls, through FastAPI to everything else."""

    def __init__(self, desk: Desk) -> None:
        settings = desk.settings
        intake = Intake(settings.body_bytes_max, settings.intake_bytes_max, settings.body_timeout_s)
        self._hot: dict[str, Asgi] = {
            "/v1/chat/completions": CompletionRoute("chat", desk, intake),
            "/v1/completions": CompletionRoute("completions", desk, intake),
        }
        self._rest = _application(desk, self._hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot = self._hot.get(scope["path"]) if scope.get("method") == "POST" else None
        await (hot or self._rest)(scope, receive, send)


def _application(desk: Desk, hot: dict[str, Asgi]) -> Asgi:
    app = FastAPI(title="Switchyard", version=version(), docs_url=None, redoc_url=None)

    # Named here as well, so that a wrong method gets its 405.
    app.router.routes.extend(Route(path, call, methods=["POST"]) for path, call in hot.items())

    async def known(request: Request) -> None:
        """Raises ``ApiError`` for whoever may not ask."""
        await desk.tenants.of(request.scope)

    wants_key = [Depends(known)]

    @app.get("/v1/models", dependencies=wants_key)
    async def list_models() -> JSONResponse:
        cards = sorted(desk.models, key=lambda m: m.card.model)
        return JSONResponse({"object": "list", "data": [_model(m) for m in cards]})

    @app.get("/v1/models/{model:path}", dependencies=wants_key)
    async def show_model(model: str) -> JSONResponse:
        return JSONResponse(_model(desk.models.get(model)))

    app.include_router(state_router(desk), dependencies=wants_key)
    app.router.routes.extend(node_routes(desk))

    @app.get("/health")
    async def health() -> JSONResponse:
        """Is this process alive, and what stands between it and a request that succeeds?"""
        found = desk.readiness
        content = {
            "status": "ok" if found.ready else "unavailable",
            "missing": list(found.missing),
            "models": list(found.models),
            "bus": {"connected": desk.host.bus.connected},
            "history": desk.history,
            "running": len(desk.core.requests),
            "draining": desk.draining,
        }
        return JSONResponse(content, 200 if found.ready else 503)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 only when a request will succeed."""
        found = desk.readiness
        content = {"ready": found.ready, "missing": list(found.missing)}
        return JSONResponse(content, 200 if found.ready else 503)

    @app.get("/live")
    async def live() -> JSONResponse:
        """The loop turns."""
        return JSONResponse({"live": True})

    @app.get("/version")
    async def show_version() -> JSONResponse:
        return JSONResponse({"version": version()})

    _shape_errors(app, desk)
    return app


def _shape_errors(app: FastAPI, desk: Desk) -> None:
    """Whatever goes wrong has one shape, OpenAI's."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return _shaped(error)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _shaped(invalid(str(first["loc"][-1]), str(first["msg"])))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return _shaped(of_status(error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        desk.host.counters.add("http_errors_total")
        desk.host.log.error("a request failed", exc_info=error)
        return _shaped(internal())


def version() -> str:
    """The installed version of this program."""
    return importlib.metadata.version("switchyard")


def _model(model: Model) -> dict[str, Any]:
    card = model.card
    return {
        "id": card.model,
        "object": "model",
        "created": card.created_s,
        "owned_by": card.owned_by,
        "max_model_len": card.context_tokens_max,
    }


def _shaped(error: ApiError, headers: Any = None) -> JSONResponse:
    return JSONResponse(error.content, error.status, headers=headers)
