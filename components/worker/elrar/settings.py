"""The variables of ELRAR's engine agent, read from an environment. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

ENABLE: Final = "VLLM_ENABLE_ELRAR"
MODE: Final = "VLLM_ELRAR_NETWORK_MODE"
HOST: Final = "VLLM_ELRAR_GATEWAY_HOST"
PORT: Final = "VLLM_ELRAR_GATEWAY_PORT"
BROADCAST_PORT: Final = "VLLM_ELRAR_BROADCAST_PORT"
INTERVAL: Final = "VLLM_ELRAR_PUSH_INTERVAL"
ENGINE_ID: Final = "VLLM_ELRAR_ENGINE_ID"
#: Ours: a file of keys (``components.host.signing_keys``), mode 0600; its first key signs.
KEYS_FILE: Final = "VLLM_ELRAR_KEYS_FILE"

DEFAULT_PORT: Final = 9999
INTERVAL_MS: Final = 200
INTERVAL_MS_MAX: Final = 60_000
NAME_BYTES_MAX: Final = 256
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})

#: One copy to the local network; the seed's sender made three on one host.
EVERYBODY: Final = "255.255.255.255"

NetworkMode = Literal["unicast", "broadcast"]


class BadElrar(ValueError):
    """A variable says something that cannot be; the message names it."""


@dataclass(frozen=True, slots=True)
class ElrarSettings:
    """``interval_s`` is the least time between two datagrams; ``keys_file`` empty: unsigned."""

    mode: NetworkMode
    host: str
    port: int
    interval_s: float
    engine_id: str
    keys_file: str = ""


def read(environment: Mapping[str, str], own_address: str, pid: int) -> ElrarSettings | None:
    """What is set; None when nothing is to be sent. Raises ``BadElrar``.

    ``own_address`` is this machine's, for the name of an engine that has none.
    """
    given = {name: value.strip() for name, value in environment.items()}
    if not _flag(given.get(ENABLE) or "true"):
        return None
    mode: NetworkMode
    match given.get(MODE) or "unicast":
        case "broadcast":
            mode, host, number = "broadcast", EVERYBODY, BROADCAST_PORT
        case "unicast":
            mode, host, number = "unicast", given.get(HOST, ""), PORT
        case other:
            raise BadElrar(f"{MODE} is unicast or broadcast, not {other!r}")
    if not host:
        return None
    port = _whole(given, number, DEFAULT_PORT, 65_535)
    interval_ms = _whole(given, INTERVAL, INTERVAL_MS, INTERVAL_MS_MAX)
    name = _name(given, own_address, pid)
    return ElrarSettings(mode, host, port, interval_ms / 1e3, name, given.get(KEYS_FILE, ""))


def _flag(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise BadElrar(f"{ENABLE} is true or false, not {text!r}")
    return text.lower() in _YES


def _whole(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = given.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise BadElrar(f"{name} is a number from 1 to {most}, not {text!r}")
    return int(text)


def _name(given: Mapping[str, str], own_address: str, pid: int) -> str:
    """Its own name, else the address under which it is asked, else one made of its process."""
    name = given.get(ENGINE_ID) or given.get("VLLM_ENGINE_URL") or given.get("VLLM_API_BASE")
    if not name:
        port = given.get("VLLM_PORT") or given.get("PORT") or "8000"
        scheme = given.get("VLLM_SCHEME") or "http"
        name = f"{scheme}://{own_address}:{port}" if own_address else f"engine_id-{pid}"
    if not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
        raise BadElrar(f"{ENGINE_ID}: not a name of up to {NAME_BYTES_MAX} bytes")
    return name
