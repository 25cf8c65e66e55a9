"""The request ids by which vLLM's former ``P2pNcclConnector`` finds the other side. Pure.

Servers of vLLM before 0.14 that run this connector read both addresses out of the request's id, and
name the KV they exchange by it: both servers must get the very same id, as ``X-Request-Id``.

    ___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_9f0c...

The addresses are those of the connectors (``kv_ip:kv_port`` of rank 0), not the HTTP ones.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from uuid import UUID

from components.worker.engine import JobKey

_ID: Final = re.compile(
    r"___prefill_addr_(?P<prefill>.+:\d{1,5})___decode_addr_(?P<decode>.+:\d{1,5})"
    r"_(?P<unique>[0-9a-f]{32})"
)
_ADDRESS: Final = re.compile(r"[^\s_/]+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class P2pRequestId:
    """What an id says. Addresses are ``host:port``, ``unique`` is 32 hexadecimal digits."""

    prefill: str
    decode: str
    unique: str

    def __str__(self) -> str:
        return f"___prefill_addr_{self.prefill}___decode_addr_{self.decode}_{self.unique}"


def request_id_of(key: JobKey, *, prefill: str, decode: str) -> str:
    """The id of one attempt, the same on both sides without a word between them.

    Raises ValueError for something that is no address.
    """
    for address in (prefill, decode):
        if not is_address(address):
            raise ValueError(f"{address!r} is not HOST:PORT")
    return str(P2pRequestId(prefill, decode, unique_of(key)))


def unique_of(key: JobKey) -> str:
    """The digits of a version 4 UUID that follow from request and attempt."""
    digest = blake2b(f"{key[0]}/{key[1]}".encode(), digest_size=16).digest()
    return UUID(bytes=digest, version=4).hex


def parse_request_id(text: str) -> P2pRequestId:
    """Inverse of ``request_id_of``; the server's own prefix and suffix may stand around it.

    Raises ValueError.
    """
    found = _ID.search(text)
    if found is None:
        raise ValueError(f"{text[:200]!r} is no id of the P2P NCCL connector")
    return P2pRequestId(**found.groupdict())


def is_address(text: str) -> bool:
    """Whether this is ``host:port`` and can stand in such an id."""
    return _ADDRESS.fullmatch(text) is not None and int(text.rpartition(":")[2]) < 65_536
