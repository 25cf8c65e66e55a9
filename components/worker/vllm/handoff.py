"""What the engine and its KV connector say to each other about one job.

vLLM runs the connector inside its own processes; from out here there are only two ways in and one
way out: ``kv_transfer_params`` of a request, and the same of its last output. What they contain is
the connector's business. Whatever more a connector can do from outside (say when bytes arrived,
free pages at once) goes through an ``Exchange`` of its own.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from components.worker.engine import EngineEvent, Job, JobKey, KvSource, Params

#: Where the relayed parameters stand in the params of an offer, as JSON.
RELAYED: Final = "kv_transfer_params"


class Exchange(Protocol):
    """One engine's side. All calls come from the event loop's thread and do not wait.

    ``tells_arrival``: it reports ``KvArrived`` itself; else the first token of a job stands for it.
    """

    tells_arrival: bool

    async def start(self, report: Callable[[EngineEvent], None]) -> None:
        """The engine runs. ``report`` takes Moved, MoveFailed, KvArrived and KvFailed."""

    async def stop(self) -> None:
        """The engine is about to end. Also after a failed start; twice."""

    def prefill_params(self, job: Job) -> Mapping[str, Any]:
        """What a prefill is told."""
        ...

    def offer_params(self, job: Job, returned: Mapping[str, Any] | None) -> Params:
        """What the offer says, from what the connector returned with the prefill."""
        ...

    def decode_params(self, job: Job, source: KvSource) -> Mapping[str, Any]:
        """What a decode whose KV lies at ``source`` is told."""
        ...

    def send_kv(self, key: JobKey, peer: str) -> None:
        """The other side has room. One that is pulled from has nothing to do."""

    def stop_sending(self, key: JobKey) -> None:
        """Nothing may read the pages of this job any more."""

    def release(self, key: JobKey) -> None:
        """Free the pages of a prefill, also of one that was aborted before it was heard to end."""


class Relay:
    """For connectors that need no more than their params carried over, as they are (NIXL).

    Their pages are freed by themselves: when the other side has pulled, or after their own lease.
    """

    tells_arrival = False

    async def start(self, report: Callable[[EngineEvent], None]) -> None:
        pass

    async def stop(self) -> None:
        pass

    def prefill_params(self, job: Job) -> Mapping[str, Any]:
        nobody = dict.fromkeys(
            ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        )
        return {"do_remote_decode": True, "do_remote_prefill": False, **nobody}

    def offer_params(self, job: Job, returned: Mapping[str, Any] | None) -> Params:
        return {} if returned is None else {RELAYED: json.dumps(dict(returned))}

    def decode_params(self, job: Job, source: KvSource) -> Mapping[str, Any]:
        relayed = source.params.get(RELAYED)
        params: Mapping[str, Any] = json.loads(relayed) if isinstance(relayed, str) else {}
        return params

    def send_kv(self, key: JobKey, peer: str) -> None:
        pass

    def stop_sending(self, key: JobKey) -> None:
        pass

    def release(self, key: JobKey) -> None:
        pass
