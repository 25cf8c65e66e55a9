"""The scheduler's side: which blocks are handed over, and which wait for somebody's.

It has no connection and no thread. Each step it hands its orders to the ranks with the metadata
that vLLM sends them anyway, and hears back through vLLM what has ended.

P keeps the blocks of the prompt, not those of the token that it sampled beside it. D fills the
blocks that it does not have: its own prefix hits are full blocks at the front, so what is missing
is the tail. D then computes the last token of the prompt again, on top of what was loaded.

vLLM says when it takes a request, and when it has blocks for it, but not that it has none. A
request that still has none when the orders of a step are taken has been passed over by that step:
so the ranks are told to fetch its KV into host memory meanwhile (``staging.py``).
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from components.worker.vllm.connector.config import ConnectorConfig, Held
from components.worker.vllm.connector.orders import Orders, Pin, PullOrder, SayRelease
from schemas.codes import ReleaseReason

log: Final = logging.getLogger("switchyard.connector")

#: A vLLM request; of it we read ids, token counts, its status and its ``kv_transfer_params``.
Request = Any

#: How a prompt's request may end so that its blocks are whole: at its one token, or at a stop.
_WHOLE: Final = frozenset({"FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED"})


class HandoffScheduling:
    """One engine's. ``layout`` names what a block holds, the same on all engines that fit."""

    def __init__(
        self, config: ConnectorConfig, *, block_tokens: int, ranks: int, layout: str
    ) -> None:
        self._config = config
        self._block_tokens = block_tokens
        self._ranks = ranks
        self._layout = layout
        self._orders = Orders()
        self._loading: set[str] = set()
        self._new: dict[str, PullOrder] = {}  # no step has passed these over so far
        self._staged: set[str] = set()
        self._transfers = itertools.count(1)

    # D

    def on_new(self, request: Request) -> None:
        """VLLM has taken a request; it may find blocks for it in the next step, or much later."""
        held = self._wanted(request)
        if not self._config.host_staging_bytes or held is None or self._objection(held):
            return
        blocks = self._blocks_of(self._loadable(held, request))
        if blocks:
            self._new[request.request_id] = self._order(request, held, 0, range(blocks))

    def tokens_to_load(self, request: Request, computed_tokens: int) -> int:
        """Tokens beyond the local prefix hit that P has. Changes nothing; may be asked again."""
        held = self._wanted(request)
        if held is None:
            return 0
        return max(0, self._loadable(held, request) - computed_tokens)

    def on_blocks(self, request: Request, blocks: Sequence[int], tokens: int) -> None:
        """``blocks`` are all of the request's; ``tokens`` of them are to be loaded.

        vLLM calls it again when the load is over: by then nothing is wanted any more.
        """
        held = self._wanted(request)
        if held is None:
            return
        self._forget_source(request)
        if tokens <= 0:
            self._unstage(request)
            self._release(held, "consumed")  # all of it was here
            return
        total = self._loadable(held, request)
        first = (total - tokens) // self._block_tokens
        self._new.pop(request.request_id, None)
        self._staged.discard(request.request_id)
        self._loading.add(request.request_id)
        wanted = blocks[first : self._blocks_of(total)]
        self._orders.pulls.append(self._order(request, held, first, wanted))

    def _order(self, request: Request, held: Held, first: int, blocks: Sequence[int]) -> PullOrder:
        return PullOrder(
            transfer_id=held.transfer_id,
            request_id=request.request_id,
            source=held.worker,
            epoch=held.epoch,
            first_block=first,
            blocks=tuple(blocks),
            refused=self._objection(held),
        )

    def _unstage(self, request: Request) -> None:
        """It will not be pulled: what the ranks have staged is of no use."""
        self._new.pop(request.request_id, None)
        if request.request_id in self._staged:
            self._staged.discard(request.request_id)
            self._orders.cancels.append(request.request_id)

    def _wanted(self, request: Request) -> Held | None:
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_prefill"):
            return None
        try:
            return Held.of(params)
        except ValueError as error:
            log.warning("%s: %s; computing the prompt here", request.request_id, error)
            self._forget_source(request)
            return None

    def _forget_source(self, request: Request) -> None:
        """From here on the request is like any other: a retry computes its prompt."""
        request.kv_transfer_params["do_remote_prefill"] = 0

    def _loadable(self, held: Held, request: Request) -> int:
        """Tokens at the front of the request that P has; whole blocks unless it has all of them."""
        tokens = min(held.tokens, held.blocks * self._block_tokens)
        if tokens >= request.num_tokens:
            return int(request.num_tokens)
        return tokens - tokens % self._block_tokens

    def _objection(self, held: Held) -> str:
        """Why these blocks cannot be used here at all."""
        if held.ranks != self._ranks:
            return (
                f"{held.worker} runs on {held.ranks} ranks and this engine on {self._ranks}: "
                "blocks pass between equal ranks only; give both the same tensor parallel size"
            )
        if held.layout != self._layout:
            return f"{held.worker} has blocks of another kind: {held.layout}, not {self._layout}"
        return ""

    # P

    def on_finished(
        self, request: Request, blocks: Sequence[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended. True: its blocks stay, and the dict tells where they are."""
        if request.request_id in self._loading:
            self._orders.cancels.append(request.request_id)
            return False, None  # vLLM keeps the blocks by itself until the pull is over
        held = self._wanted(request)
        if held is not None:  # aborted before it had blocks to load into
            self._forget_source(request)
            self._unstage(request)
            self._release(held, "cancelled")
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_decode"):
            return False, None
        count = self._blocks_of(request.num_prompt_tokens)
        whole = request.status.name in _WHOLE and len(blocks) >= count
        return self._pin(request, blocks[:count]) if whole else (False, None)

    def _pin(self, request: Request, blocks: Sequence[int]) -> tuple[bool, dict[str, Any]]:
        config, params = self._config, request.kv_transfer_params
        transfer_id = params.get("transfer_id")
        if not isinstance(transfer_id, str) or not transfer_id:
            transfer_id = f"{config.worker}.{config.epoch:x}.{next(self._transfers)}"
        lease_ms = params.get("lease_ms")
        if type(lease_ms) is not int or not 0 < lease_ms < config.lease_ms:
            lease_ms = config.lease_ms
        self._orders.pins.append(Pin(transfer_id, request.request_id, tuple(blocks), lease_ms))
        held = Held(
            transfer_id=transfer_id,
            worker=config.worker,
            epoch=config.epoch,
            tokens=request.num_prompt_tokens,
            blocks=len(blocks),
            layout=self._layout,
            ranks=self._ranks,
        )
        return True, dict(held.params())

    # Both

    def take_orders(self, *, idle: bool = False) -> Orders:
        """All orders of this step, for the ranks; once per step, after blocks were given out."""
        orders, self._orders = self._orders, Orders()
        orders.stages += self._new.values()
        self._staged.update(self._new)
        self._new.clear()
        orders.idle = idle
        return orders

    def on_received(self, request_ids: Iterable[str]) -> None:
        """These pulls are over, well or not."""
        self._loading.difference_update(request_ids)

    def _release(self, held: Held, reason: ReleaseReason) -> None:
        self._orders.releases.append(SayRelease(held.transfer_id, held.worker, held.epoch, reason))

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
