"""``host:port`` as engines write it, read strictly and written in one form. Pure."""

import ipaddress
import re
from typing import Final

ADDRESS_CHARS_MAX: Final = 262
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


class BadAddress(ValueError):
    """The text is no address that one could connect to."""


def normal(text: str) -> str:
    """``text`` as ``name:port``, ``1.2.3.4:port`` or ``[fd00::7]:port``; raises ``BadAddress``.

    The last colon parts host and port, with or without brackets: vLLM writes ``fd00::7:20003``.
    """
    if len(text) > ADDRESS_CHARS_MAX:
        raise BadAddress("an address is at most 253 characters and a port")
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadAddress("an address ends in :port, 1 to 65535")
    return f"{_host(host)}:{port}"


def _host(text: str) -> str:
    bracketed = text.startswith("[") and text.endswith("]")
    try:
        ip = ipaddress.ip_address(text[1:-1] if bracketed else text)
    except ValueError:
        return _name(text)
    if ip.is_unspecified or ip.is_multicast or (bracketed and ip.version == 4):
        raise BadAddress("nobody can be reached at this address")
    return f"[{ip}]" if ip.version == 6 else str(ip)


def _name(text: str) -> str:
    labels = text.split(".")
    # 1.2.3.400 and 1.2.3 are mistyped addresses, not names.
    if len(text) > 253 or labels[-1].isdigit() or not all(map(_LABEL.fullmatch, labels)):
        raise BadAddress("neither an IP address nor a host name")
    return text.lower()
