"""What goes wrong with one half of a request, and what follows from it. Pure.

Three questions are asked of a fault. May another pair be tried? Is the server to blame, so that
its circuit counts it? Is it the request's own mistake, so that its client hears of it? A 4xx is
never the server's fault, and neither is 503: a full server is not a broken one.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from components.worker.sglang.pairs import Side

Kind = Literal["connect", "timeout", "reset", "cut", "status", "garbage", "unhealthy"]

#: The request itself is wrong, or too much for every server of its kind.
REQUEST_STATUSES: Final = frozenset((400, 413, 422))
#: Try elsewhere, or later.
PASSING_STATUSES: Final = frozenset((408, 409, 425, 429))
#: What a server says of a prompt that does not fit.
_ABOUT_LENGTH: Final = ("longer than", "context length", "exceeds the")


@dataclass(frozen=True, slots=True)
class LegFault:
    """``status`` is that of the answer, or the one inside an error event; 0 where there was none.

    ``blameless``: it happened on a connection that had been idle, which the server may close.
    """

    kind: Kind
    detail: str = ""
    status: int = 0
    blameless: bool = False

    @property
    def is_request(self) -> bool:
        """The request's own mistake: no other pair would take it."""
        return self.kind == "status" and self.status in REQUEST_STATUSES

    @property
    def may_retry(self) -> bool:
        """Another pair may do better."""
        if self.kind != "status":
            return True
        return self.status in PASSING_STATUSES or self.status >= 500

    @property
    def is_servers(self) -> bool:
        """The server is to blame."""
        if self.blameless:
            return False
        return self.kind != "status" or (self.status >= 500 and self.status != 503)

    def told_by(self, side: Side) -> str:
        """For the log and the router: which server, what, why."""
        name = "Prefill" if side == "prefill" else "Decode"
        status = f" ({self.status})" if self.status else ""
        return f"{name} server error{status}: {self.kind}{': ' if self.detail else ''}{self.detail}"

    @property
    def param(self) -> str:
        """OpenAI's name of what is wrong with the request, as far as it can be told."""
        about_length = any(words in self.detail for words in _ABOUT_LENGTH)
        return "prompt" if about_length else "sampling parameters"


def error_fault(error: Any) -> LegFault:
    """From ``{"error": ...}`` in an answer. SGLang sends one there for what it does not accept."""
    if not isinstance(error, dict):
        return LegFault("status", str(error)[:300], 400)
    code = error.get("code", error.get("status_code"))
    status = code if type(code) is int and 400 <= code < 600 else 400
    return LegFault("status", str(error.get("message", ""))[:300], status)


def abort_fault(finish: dict[str, Any]) -> LegFault:
    """From a ``finish_reason`` of type abort: the server, or somebody, has ended it."""
    status = finish.get("status_code")
    known = status if type(status) is int and 400 <= status < 600 else 500
    return LegFault("status", str(finish.get("message", ""))[:300], known)
