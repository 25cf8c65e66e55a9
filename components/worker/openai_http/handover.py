"""How the KV of a prompt is handed from one server to another: what each is told. Pure.

Either P's answer returns parameters which D's request repeats word for word (NIXL), or both
requests carry one id that names both connectors (``p2p_nccl.py``). The servers move the bytes by
themselves and free them by themselves; from out here nothing can be moved, stopped or freed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from components.worker.engine import EngineRefused, Job, KvSource, Params
from components.worker.openai_http import p2p_nccl

#: Where each of the two stands in the params of an offer.
RELAYED = "kv_transfer_params"
KV_ADDRESS = "kv_address"


@dataclass(frozen=True, slots=True)
class Told:
    """What one request says of the KV: fields of its body, and its headers."""

    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Handover(Protocol):
    """One server's side. All raise ``EngineRefused`` when the other side cannot be met."""

    def prefill(self, job: Job, peer_address: str | None) -> Told:
        """For the request that computes the prompt."""
        ...

    def offer(self, answer: Mapping[str, Any]) -> Params:
        """What the offer says, from the answer to that request (empty when it is still to come)."""
        ...

    def decode(self, job: Job, source: KvSource) -> Told:
        """For the request whose KV lies at ``source``."""
        ...


class Relayed:
    """P's ``kv_transfer_params``, as they are."""

    def prefill(self, job: Job, peer_address: str | None) -> Told:
        nobody = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        asked = {"do_remote_decode": True, "do_remote_prefill": False, **dict.fromkeys(nobody)}
        return Told({"kv_transfer_params": asked})

    def offer(self, answer: Mapping[str, Any]) -> Params:
        returned = answer.get("kv_transfer_params")
        return {RELAYED: orjson.dumps(returned).decode()} if isinstance(returned, dict) else {}

    def decode(self, job: Job, source: KvSource) -> Told:
        text = source.params.get(RELAYED)
        try:
            params = orjson.loads(text) if isinstance(text, str) else {}
        except orjson.JSONDecodeError as error:
            raise EngineRefused("unsupported", "an offer of another kind") from error
        return Told({"kv_transfer_params": params} if params else {})


class ByRequestId:
    """Both requests under one id; ``kv_address`` is our own connector's."""

    def __init__(self, kv_address: str) -> None:
        self._own = kv_address

    def prefill(self, job: Job, peer_address: str | None) -> Told:
        if peer_address is None or not p2p_nccl.is_address(peer_address):
            # Its heartbeats say it, and one of them will come: try again rather than give up.
            raise EngineRefused("draining", f"the KV address of {job.peer} is not known yet")
        return self._told(job, self._own, peer_address)

    def offer(self, answer: Mapping[str, Any]) -> Params:
        return {KV_ADDRESS: self._own}

    def decode(self, job: Job, source: KvSource) -> Told:
        address = source.params.get(KV_ADDRESS)
        if not isinstance(address, str) or not p2p_nccl.is_address(address):
            raise EngineRefused("unsupported", "an offer of another kind")
        return self._told(job, address, self._own)

    def _told(self, job: Job, prefill: str, decode: str) -> Told:
        request_id = p2p_nccl.request_id_of(job.key, prefill=prefill, decode=decode)
        return Told(headers={"X-Request-Id": request_id})
