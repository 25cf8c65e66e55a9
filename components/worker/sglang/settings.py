"""What an agent in front of SGLang servers is told."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from components.host.settings import Settings
from components.worker.elsewhere_settings import server_url, table

PORT_MAX: Final = 65_535

#: The URL of a prefill server, and the port of its bootstrap server if it is not the default one.
PrefillUrl = tuple[str, int | None]


def prefill_url(given: object) -> PrefillUrl:
    """``"URL"``, ``"URL PORT"`` or ``[URL, PORT or null]``. Raises ValueError."""
    url: object = given
    port: object = None
    if isinstance(given, str):
        url, _, rest = given.strip().partition(" ")
        port = rest.strip() or None
    elif isinstance(given, Sequence) and 1 <= len(given) <= 2:
        url, port = given[0], (given[1] if len(given) == 2 else None)
    if port is None:
        return server_url(url), None
    if isinstance(port, bool) or not str(port).isdecimal() or not 0 < int(str(port)) <= PORT_MAX:
        raise ValueError(f"a bootstrap port is a number from 1 to {PORT_MAX}, or null")
    return server_url(url), int(str(port))


class SglangSettings(Settings):
    """How the servers are chosen, spoken to and judged. Times in seconds.

    A request has three limits: until both connections stand (``connect_timeout_s``), until each
    server has begun to answer (``first_byte_timeout_s``), until decode gives the first token
    (``first_token_timeout_s``); and one over all tries (``request_timeout_s``).
    """

    #: Names: components/worker/sglang/policies.py.
    policy: Literal["random", "round_robin", "least_requests"] = "random"
    #: Pairs tried per job, each with rooms of its own, as long as no token has come.
    tries: int = Field(default=3, ge=1, le=10)
    request_timeout_s: float = Field(default=1800.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    first_byte_timeout_s: float = Field(default=30.0, gt=0)
    first_token_timeout_s: float = Field(default=300.0, gt=0)
    #: How long a prefill server may still answer when decode is done.
    prefill_drain_s: float = Field(default=30.0, gt=0)
    #: Ask for streams; without, each choice comes in one piece.
    stream: bool = True

    #: Looked at in the background; ``/health_generate`` lets the server make a token.
    health_path: Literal["/health", "/health_generate"] = "/health"
    health_interval_s: float = Field(default=5.0, gt=0)
    health_timeout_s: float = Field(default=5.0, gt=0)
    #: This many failures in a row, of requests or of looks, and a server gets no more jobs.
    failures_max: int = Field(default=3, ge=1)
    #: After this long one job is let through to see.
    retry_after_s: float = Field(default=10.0, gt=0)
    #: How often servers are asked for their figures.
    info_interval_s: float = Field(default=10.0, gt=0)

    #: Idle connections kept per server, and for how long (uvicorn closes them after 5 s).
    idle_connections_max: int = Field(default=64, ge=0)
    idle_connection_s: float = Field(default=4.0, gt=0)

    #: IPv6 hosts as ``[::1]``, which every SGLang takes; newer ones take ``::1`` as well.
    ipv6_brackets: bool = True
    #: The servers' ``--api-key``, in a file.
    api_key_file: str = ""
    #: Directory with ``tokenizer.json``; without, prompts go to the servers as text.
    tokenizer_dir: str = ""


SglangTable = Annotated[SglangSettings, BeforeValidator(table)]


def whole_pair(prefill_urls: Sequence[Any], decode_urls: Sequence[Any]) -> None:
    """Raises ValueError, in the words of the load balancer that this stands in for."""
    if not prefill_urls:
        raise ValueError("At least one prefill server is required")
    if not decode_urls:
        raise ValueError("At least one decode server is required")
    urls = [url for url, _ in prefill_urls] + list(decode_urls)
    if len(set(urls)) != len(urls):
        raise ValueError("a server is named once, as prefill or as decode")
