"""What joins the two halves of a request: host and port of the prefill server, and rooms. Pure.

Both servers get the same body. The host is always the prefill server's, also in what decode gets:
it is where decode asks for the KV. Without a port decode uses its own default, so null is right
where all servers have the same one.

One choice has three plain values. Several have three lists of that length with a room each: a
plain room would become ``room, room + 1, ...`` on the server, which may be somebody else's.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit


def host_of(url: str, *, brackets: bool = True) -> str:
    """The host of a server's URL; IPv6 addresses as ``[::1]``, or bare without ``brackets``."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]" if brackets and _is_ipv6(host) else host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def meeting(host: str, port: int | None, rooms: Sequence[int], *, batch: bool) -> dict[str, Any]:
    """The three fields that both bodies get; lists of ``len(rooms)`` for a batch."""
    if not batch:
        [room] = rooms
        return {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}
    return {
        "bootstrap_host": [host] * len(rooms),
        "bootstrap_port": [port] * len(rooms),
        "bootstrap_room": list(rooms),
    }
