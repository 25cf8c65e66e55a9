"""What a client is told when it does not get what it asked for: OpenAI's shape, stable codes.

Texts are written here and never taken from an exception, so that nothing of the inside leaks.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson

from components.gateway.request import End
from schemas.codes import RefusalCode

Headers = list[tuple[bytes, bytes]]

INVALID: Final = "invalid_request_error"
OVERLOADED: Final = "rate_limit_error"
UNAVAILABLE: Final = "service_unavailable_error"
SERVER: Final = "server_error"
TIMEOUT: Final = "timeout_error"

#: What a parameter may be called: ``logit_bias``, ``messages[2].content``.
_PARAM: Final = re.compile(r"[a-z_]{1,40}(\[[0-9]{1,4}\]|\.[a-z_]{1,40}){0,4}")


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200. ``param`` names the field that is to be mended."""

    status: int
    code: str
    message: str
    type: str = INVALID
    param: str | None = None
    retry_after_ms: int = 0

    @property
    def content(self) -> dict[str, dict[str, str | None]]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def body(self) -> bytes:
        return orjson.dumps(self.content)

    @property
    def headers(self) -> Headers:
        """Content type, and when to come back if that is worth while (RFC 9110, 10.2.3)."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_ms > 0:
            headers.append((b"retry-after", str(math.ceil(self.retry_after_ms / 1000)).encode()))
        return headers


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """The request itself is wrong: sending it again changes nothing."""
    return ApiError(HTTPStatus.BAD_REQUEST, code, message, INVALID, param)


def unsupported(param: str) -> ApiError:
    """We understand what is asked and cannot honour it, so we do not pretend."""
    message = f"'{shown(param)}' is not supported by this server with the given value"
    return invalid(param, message, "unsupported_parameter")


def context_exceeded(param: str, context_tokens_max: int, wanted: str) -> ApiError:
    message = f"This model's maximum context length is {context_tokens_max} tokens; {wanted}"
    return invalid(param, message, "context_length_exceeded")


def model_not_found(model: str) -> ApiError:
    message = f"The model '{shown(model)}' does not exist"
    return ApiError(HTTPStatus.NOT_FOUND, "model_not_found", message, INVALID, "model")


def too_large(limit_bytes: int) -> ApiError:
    message = f"The request body is larger than {limit_bytes} bytes"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", message)


def overloaded(what: str) -> ApiError:
    """One of our bounds is reached; it passes."""
    message = f"The server is busy: {what}. Please try again"
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", message, UNAVAILABLE, retry_after_ms=1000
    )


def shutting_down() -> ApiError:
    message = "The server is shutting down. Please try again"
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", message, UNAVAILABLE, retry_after_ms=1000
    )


def internal() -> ApiError:
    """A bug of ours; the log has it."""
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "An internal error occurred", SERVER
    )


def of_status(status: int) -> ApiError:
    """What the HTTP layer itself refuses: no such path, wrong method, and the like."""
    texts = {404: ("not_found", "There is nothing at this path")}
    texts[405] = ("method_not_allowed", "This path does not take this method")
    code, message = texts.get(status, ("invalid_request", "The request cannot be served"))
    return ApiError(status, code, message, INVALID if status < 500 else SERVER)


#: status, type, text for each way in which a request ends without its tokens.
_ENDS: Final[dict[RefusalCode, tuple[HTTPStatus, str, str]]] = {
    "model_not_found": (HTTPStatus.NOT_FOUND, INVALID, "The model does not exist"),
    "queue_full": (
        HTTPStatus.TOO_MANY_REQUESTS,
        OVERLOADED,
        "Too many requests are waiting. Please try again",
    ),
    "deadline_exceeded": (
        HTTPStatus.GATEWAY_TIMEOUT,
        TIMEOUT,
        "The request did not finish before its deadline",
    ),
    "too_many_attempts": (
        HTTPStatus.BAD_GATEWAY,
        SERVER,
        "Every attempt to run this request ended early",
    ),
    "prompt_too_long": (
        HTTPStatus.BAD_REQUEST,
        INVALID,
        "The prompt is too long for every engine of this model",
    ),
    "body_unavailable": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
        "The request's content was lost on its way. Please try again",
    ),
    "no_worker": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
        "No engine can take this request now. Please try again",
    ),
    "shutting_down": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
        "The server is shutting down. Please try again",
    ),
    "engine_error": (HTTPStatus.BAD_GATEWAY, SERVER, "The engine could not run this request"),
    "cancelled": (HTTPStatus.SERVICE_UNAVAILABLE, SERVER, "The request was cancelled"),
    "invalid_request": (
        HTTPStatus.BAD_REQUEST,
        INVALID,
        "The engine of this model cannot do what this parameter asks for",
    ),
}


def of_end(end: End, names: Mapping[str, str] | None = None) -> ApiError:
    """The answer for a request that ended without all its tokens.

    ``names`` are the client's words for parameters that the body calls otherwise.
    """
    status, kind, message = _ENDS[end.code]
    code = "context_length_exceeded" if end.code == "prompt_too_long" else end.code
    retry_after_ms = end.retry_after_ms
    if not retry_after_ms and status in {
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.TOO_MANY_REQUESTS,
    }:
        retry_after_ms = 1000
    param = _param(end.detail, names or {}) if end.code == "invalid_request" else None
    return ApiError(status, code, message, kind, param, retry_after_ms)


def _param(detail: str, names: Mapping[str, str]) -> str | None:
    """A worker names the parameter that its engine cannot use; anything else it says stays here."""
    return names.get(detail, detail) if _PARAM.fullmatch(detail) else None


def shown(name: str) -> str:
    """A name that a client chose, fit to be shown again."""
    return name if len(name) <= 128 else name[:125] + "..."
