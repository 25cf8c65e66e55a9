"""The older service's REST API of nodes, path for path, over the registry's questions.

Every answer has its envelope: ``message``, ``status``, ``code``, and ``data``, ``error``,
``trace_id`` where there is something to say. The HTTP status is the code. What that service
promised and did not do, this one does: an update changes what is sent and nothing else, a delete
deletes, a missing node is a 404, CORS is answered where it is allowed.
"""

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus import subjects
from bus.errors import BusError, NoResponders, TooManyPages
from bus.paging import read_pages
from components.domain.addresses import is_loopback
from components.gateway.accounts import Accounts, BadToken
from components.gateway.desk import Desk
from schemas.access import (
    Login,
    LoginReply,
    RefreshSession,
    RefreshSessionReply,
    SessionAnswer,
)
from schemas.message import Message
from schemas.nodes import (
    Caller,
    DeleteNode,
    DeleteNodeReply,
    ListNodes,
    ListNodesReply,
    Node,
    NodeRefusal,
    RegisterNode,
    RegisterNodeReply,
    ShowNode,
    ShowNodeReply,
    UpdateNode,
    UpdateNodeReply,
)

R = TypeVar("R", bound=Message)
Session = TypeVar("Session", LoginReply, RefreshSessionReply)

ANSWER_S: Final = 5.0
#: Each path takes one of them and answers the others itself, in its envelope.
METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
BODY_BYTES_MAX: Final = 64 * 1024
TRACE_CHARS_MAX: Final = 128
_STATUS: Final[dict[NodeRefusal, HTTPStatus]] = {
    "not_found": HTTPStatus.NOT_FOUND,
    "conflict": HTTPStatus.CONFLICT,
    "forbidden": HTTPStatus.FORBIDDEN,
    "invalid": HTTPStatus.BAD_REQUEST,
    "bad_transition": HTTPStatus.CONFLICT,
    "full": HTTPStatus.CONFLICT,
    "store_away": HTTPStatus.SERVICE_UNAVAILABLE,
}


class Failed(Exception):
    """An answer other than success."""

    def __init__(self, status: HTTPStatus, error: str, retry_after_s: int = 0) -> None:
        super().__init__(error)
        self.status: Final = status
        self.retry_after_s: Final = retry_after_s


class Credentials(BaseModel):
    """The body of a login."""

    model_config = ConfigDict(extra="forbid", strict=True)

    username: str
    password: str = ""


class RefreshBody(BaseModel):
    """The body of a refresh."""

    model_config = ConfigDict(extra="forbid", strict=True)

    refresh_token: str


def node_routes(desk: Desk) -> list[Route]:
    """Nine paths."""
    api = NodeApi(desk)
    table: tuple[tuple[str, str, Handler], ...] = (
        ("POST", "/api/user/login", api.login),
        ("POST", "/api/user/refresh", api.refresh),
        ("POST", "/api/node/node/register", api.register),
        ("PUT", "/api/node/node/update/{node_id}", api.update),
        ("DELETE", "/api/node/node/delete/{node_id}", api.delete),
        ("GET", "/api/node/node/get_node/{node_id}", api.show),
        ("GET", "/api/node/node/status/{node_id}", api.show),
        ("GET", "/api/node/node/all", api.all),
    )
    return [
        Route(path, _endpoint(desk, method, handler), methods=METHODS)
        for method, path, handler in table
    ]


Handler = Callable[[Request], Awaitable[Any]]


Endpoint = Callable[[Request], Awaitable[Response]]


def _endpoint(desk: Desk, method: str, handler: Handler) -> Endpoint:
    """One path: preflight, method, what it does, and its envelope whatever happens."""
    origins = desk.settings.cors_origins

    async def endpoint(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=_cors(request, origins, method))
        try:
            if request.method != method:
                raise Failed(HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {method}")
            data = await handler(request)
            response = _enveloped(request, HTTPStatus.OK, data=data)
        except Failed as why:
            response = _enveloped(request, why.status, error=str(why))
            if why.retry_after_s:
                response.headers["retry-after"] = str(why.retry_after_s)
        except TooManyPages:
            error = "more nodes than one answer holds: ask page by page, with limit and after"
            response = _enveloped(request, HTTPStatus.BAD_REQUEST, error=error)
        except BusError:
            error = "the registry does not answer: try again"
            response = _enveloped(request, HTTPStatus.SERVICE_UNAVAILABLE, error=error)
        except Exception as error:
            desk.host.counters.add("http_errors_total")
            desk.host.log.exception("a request failed: %s", type(error).__name__)
            response = _enveloped(request, HTTPStatus.INTERNAL_SERVER_ERROR, error="internal error")
        response.headers.update(_cors(request, origins, method))
        return response

    return endpoint


def _enveloped(
    request: Request, status: HTTPStatus, *, data: Any = None, error: str | None = None
) -> Response:
    word = "success" if status is HTTPStatus.OK else "error"
    envelope: dict[str, Any] = {"message": word, "status": word, "code": int(status)}
    if data is not None:
        envelope["data"] = data
    if error is not None:
        envelope["error"] = error
    if trace_id := _trace_id(request):
        envelope["trace_id"] = trace_id
    return Response(orjson.dumps(envelope), int(status), media_type="application/json")


def _trace_id(request: Request) -> str:
    said = request.headers.get("x-trace-id", "")
    return said if said.isprintable() and len(said) <= TRACE_CHARS_MAX else ""


def _cors(request: Request, origins: tuple[str, ...], method: str) -> dict[str, str]:
    origin = request.headers.get("origin", "")
    if not origin or (origin not in origins and "*" not in origins):
        return {}
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": f"{method}, OPTIONS",
        "access-control-allow-headers": "authorization, content-type, if-match, x-trace-id",
        "access-control-max-age": "600",
        "vary": "origin",
    }


class NodeApi:
    """What each path does; raises ``Failed``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._accounts = Accounts(desk.host)

    # Sessions.

    async def login(self, request: Request) -> dict[str, Any]:
        said = await _body(request, Credentials)
        client = request.client
        if not said.password and not is_loopback(self._desk.settings.host):
            # By name alone one logs in on one's own machine, if at all.
            raise Failed(HTTPStatus.UNAUTHORIZED, "unauthorized")
        question = Login(
            username=said.username[:128],
            password=said.password[:1024],
            address=client.host if client else "",
        )
        return await self._session(subjects.login(), question, LoginReply)

    async def refresh(self, request: Request) -> dict[str, Any]:
        said = await _body(request, RefreshBody)
        question = RefreshSession(refresh_token=said.refresh_token[:4096])
        return await self._session(subjects.refresh_session(), question, RefreshSessionReply)

    async def _session(
        self, subject: str, question: Message, kind: type[Session]
    ) -> dict[str, Any]:
        try:
            return _tokens(await self._ask(subject, question, kind))
        except NoResponders:
            error = "no registry keeps accounts now (registry.access_dir)"
            raise Failed(HTTPStatus.SERVICE_UNAVAILABLE, error) from None

    # Nodes.

    async def register(self, request: Request) -> dict[str, Any]:
        caller = await self._caller(request)
        fields = await _json(request)
        node_id = fields.pop("node_id", None) or str(uuid.uuid4())
        question = _valid(
            RegisterNode,
            {"caller": caller.model_dump(), "node_id": node_id, "changes": _changes(fields)},
        )
        reply = await self._ask(subjects.register_node(), question, RegisterNodeReply)
        return _node(reply.node, reply.refusal, reply.detail)

    async def update(self, request: Request) -> dict[str, Any]:
        caller = await self._caller(request)
        fields = await _json(request)
        node_id = request.path_params["node_id"]
        if fields.pop("node_id", node_id) != node_id:
            raise Failed(HTTPStatus.BAD_REQUEST, "node_id: it cannot be changed")
        question = _valid(
            UpdateNode,
            {
                "caller": caller.model_dump(),
                "node_id": node_id,
                "changes": _changes(fields),
                "revision": _revision(request),
            },
        )
        reply = await self._ask(subjects.update_node(), question, UpdateNodeReply)
        return _node(reply.node, reply.refusal, reply.detail)

    async def delete(self, request: Request) -> str:
        caller = await self._caller(request)
        node_id = request.path_params["node_id"]
        question = _valid(
            DeleteNode,
            {"caller": caller.model_dump(), "node_id": node_id, "revision": _revision(request)},
        )
        reply = await self._ask(subjects.delete_node(), question, DeleteNodeReply)
        _node(reply.node, reply.refusal, reply.detail)
        return str(node_id)

    async def show(self, request: Request) -> dict[str, Any]:
        await self._caller(request)
        question = _valid(ShowNode, {"node_id": request.path_params["node_id"]})
        reply = await self._ask(subjects.show_node(), question, ShowNodeReply)
        return _node(reply.node, reply.refusal, reply.detail)

    async def all(self, request: Request) -> list[dict[str, Any]]:
        """Every node, or a page of them with ``after``, ``limit`` and ``status``."""
        await self._caller(request)
        asked = {k: v for k, v in request.query_params.items() if k in ListNodes.model_fields}
        question = _valid(ListNodes, asked)

        async def ask(after: str) -> ListNodesReply:
            page = question.model_copy(update={"after": after or question.after})
            reply = await self._ask(subjects.list_nodes(), page, ListNodesReply)
            if reply.refusal is not None:
                raise Failed(_STATUS[reply.refusal], reply.detail)
            return reply

        if "limit" in asked:
            pages = [await ask("")]
        else:
            pages = await read_pages(ask, lambda page: [node.node_id for node in page.nodes])
        return [_plain(node) for page in pages for node in page.nodes]

    async def _caller(self, request: Request) -> Caller:
        try:
            return await self._accounts.caller(
                request.headers.get("authorization"), _trace_id(request)
            )
        except BadToken as why:
            raise Failed(HTTPStatus.UNAUTHORIZED, str(why)) from None

    async def _ask(self, subject: str, question: Message, reply: type[R]) -> R:
        return await self._desk.host.bus.ask(subject, question, reply, timeout_s=ANSWER_S)


def _tokens(reply: SessionAnswer) -> dict[str, Any]:
    match reply.refusal:
        case None:
            return {
                "token": reply.access_token,
                "refresh_token": reply.refresh_token,
                "expires_s": reply.expires_s,
            }
        case "unauthorized":
            raise Failed(HTTPStatus.UNAUTHORIZED, "unauthorized")
        case "too_many" | "busy":
            raise Failed(HTTPStatus.TOO_MANY_REQUESTS, "too many logins", reply.retry_after_s)
        case "store_away":
            error = "accounts are not read yet"
            raise Failed(HTTPStatus.SERVICE_UNAVAILABLE, error, reply.retry_after_s)


# What comes in.


async def _json(request: Request) -> dict[str, Any]:
    """The body, an object; bounded before it is read whole."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise Failed(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_BYTES_MAX} bytes")
    try:
        values = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError:
        raise Failed(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(values, dict):
        raise Failed(HTTPStatus.BAD_REQUEST, "the body is not an object")
    return values


Model = TypeVar("Model", bound=BaseModel)


async def _body(request: Request, model: type[Model]) -> Model:
    return _valid(model, await _json(request))


def _valid(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in {"changes", "caller"})
        raise Failed(HTTPStatus.BAD_REQUEST, f"{where}: {first['msg']}") from None


def _changes(fields: dict[str, Any]) -> dict[str, Any]:
    """What may be set; what the service itself writes is read and left alone."""
    written = {"create_time", "update_time", "revision", "healthy"}
    return {name: value for name, value in fields.items() if name not in written}


def _revision(request: Request) -> int:
    said = request.headers.get("if-match", "").strip('"')
    return int(said) if said.isdecimal() else 0


# What goes out.


def _node(node: Node | None, refusal: NodeRefusal | None, detail: str) -> dict[str, Any]:
    if refusal is not None:
        error = "node not found" if refusal == "not_found" else detail
        raise Failed(_STATUS[refusal], error)
    return _plain(node) if node else {}


def _plain(node: Node) -> dict[str, Any]:
    """With times as that service writes them."""
    values = node.model_dump()
    for name in ("create_time", "update_time"):
        at = datetime.fromtimestamp(values[name] / 1000, tz=UTC)
        values[name] = at.isoformat(timespec="milliseconds")
    return values
