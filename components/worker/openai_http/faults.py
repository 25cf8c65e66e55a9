"""What can go wrong between the agent and its server."""

from typing import Final

DETAIL_CHARS_MAX: Final = 300


class ServerFault(Exception):
    """The server cannot, or does not, do this now; another one may. The message says what it said.

    ``refused``: nobody listens at its address.
    """

    def __init__(self, detail: str, *, refused: bool = False) -> None:
        super().__init__(detail[:DETAIL_CHARS_MAX])
        self.refused = refused


class RequestBad(Exception):
    """The server refuses the request for what is in it; every other one would. ``param``: what."""

    def __init__(self, param: str, detail: str) -> None:
        super().__init__(f"{param}: {detail}"[:DETAIL_CHARS_MAX])
        self.param = param


#: The request itself is wrong. Others of the 4xx say that *we* are (401, 404) or that it is busy.
_BAD: Final = frozenset((400, 413, 422))


def fault_of(status: int, error: object) -> ServerFault | RequestBad:
    """What an answer other than 200 means; ``error`` is OpenAI's error object, or anything."""
    body = error if isinstance(error, dict) else {}
    inner = body.get("error")
    fields = inner if isinstance(inner, dict) else body
    message, param = fields.get("message"), fields.get("param")
    detail = f"{status} {message if isinstance(message, str) else ''}".strip()
    if status not in _BAD:
        return ServerFault(detail)
    return RequestBad(param if isinstance(param, str) and param else "request", detail)
