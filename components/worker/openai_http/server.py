"""The server itself: what it is, found out once; how it is, looked at once a second.

It may die, come back, and serve others beside us.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

from components.domain.pages import PAGE_TOKENS, pages_for
from components.host.clock import Clock
from components.host.errors import CannotStart
from components.worker.engine import Capabilities
from components.worker.openai_http.card import ModelFiles, card_of, read_model
from components.worker.openai_http.client import ServerClient
from components.worker.openai_http.faults import ServerFault
from components.worker.openai_http.health import Health
from components.worker.openai_http.metrics import ServerLoad, parse_metrics
from components.worker.openai_http.settings import Dialect, OpenAISettings, ServedModel
from schemas.codes import Phase
from schemas.fleet import ModelCard

log: Final = logging.getLogger("switchyard.worker")

START_POLL_S: Final = 1.0
OK: Final = 200
WRONG_KEY: Final = (401, 403)
UNWELL: Final = 500
#: A server that does not say how large its cache is is taken to hold so many whole contexts.
CONTEXTS_GUESSED: Final = 8


class Server:
    """See the top of the file. ``open_requests`` says how many of ours are open there now."""

    def __init__(
        self,
        model: ServedModel,
        settings: OpenAISettings,
        clock: Clock,
        open_requests: Callable[[], int],
    ) -> None:
        self._served = model
        self._settings = settings
        self._clock = clock
        self._open_requests = open_requests
        self._open_at_look = 0
        self.client = ServerClient(model.url, settings)
        self.health = Health(settings.polls_failed_max)
        self.dialect: Dialect = "openai"
        #: Under which name it knows the model.
        self.model = model.name
        #: There when ids mean something here.
        self.files: ModelFiles | None = None
        self._card: ModelCard | None = None
        self._capabilities: Capabilities | None = None

    @property
    def card(self) -> ModelCard:
        """What a gateway needs to serve the model."""
        assert self._card is not None, "open has not returned"
        return self._card

    @property
    def capabilities(self) -> Capabilities:
        """What it can do at all."""
        assert self._capabilities is not None, "open has not returned"
        return self._capabilities

    async def open(self) -> None:
        """Wait until it is ready and find out what it is. Raises ``CannotStart``."""
        settings = self._settings
        context_tokens_max = self._choose(await self._until_ready())
        try:
            load = await self._look()
        except ServerFault as fault:
            raise CannotStart(f"{self._served.url}: {fault}") from fault
        found: Dialect = "vllm" if load.is_vllm else "openai"
        self.dialect = found if settings.dialect == "auto" else settings.dialect
        if settings.tokenizer_dir and self.dialect == "vllm":
            self.files = await asyncio.to_thread(read_model, Path(settings.tokenizer_dir))
        self._card = card_of(
            self._served, self.dialect, self.files, context_tokens_max, settings.parses
        )
        self._capabilities = self._able(load, context_tokens_max)
        _ = self.health.on_answer(load)

    async def _until_ready(self) -> list[dict[str, Any]]:
        """What it serves, once it answers."""
        end_s = self._clock.now_s() + self._settings.start_wait_s
        while True:
            try:
                status, data = await self.client.ask("/v1/models")
                if status in WRONG_KEY:
                    raise CannotStart(f"{self._served.url} wants another key: {status}")
                if status == OK:
                    return _models(data)
                detail = str(status)
            except ServerFault as fault:
                detail = str(fault)
            if self._clock.now_s() >= end_s:
                raise CannotStart(f"{self._served.url} is not ready: {detail}")
            await self._clock.sleep(START_POLL_S)

    def _choose(self, models: list[dict[str, Any]]) -> int:
        """The model among those served; its context."""
        name = self._served.name
        named = [m for m in models if m.get("id") == name] or (models if len(models) == 1 else [])
        if not named:
            served = ", ".join(str(m.get("id"))[:100] for m in models[:10])
            raise CannotStart(f"{self._served.url} serves no {name}; it serves {served}")
        self.model = str(named[0].get("id"))
        context = named[0].get("max_model_len")
        return context if isinstance(context, int) else self._served.context_tokens_max

    def _able(self, load: ServerLoad, context_tokens_max: int) -> Capabilities:
        phases: tuple[Phase, ...] = ("aggregated",)
        if self._settings.handover != "none":
            phases = ("aggregated", "prefill", "decode")
        pages = self._served.kv_pages or load.blocks * load.block_tokens // PAGE_TOKENS
        return Capabilities(
            phases=frozenset(phases),
            context_tokens_max=context_tokens_max,
            kv_pages_total=pages or CONTEXTS_GUESSED * pages_for(context_tokens_max),
            kv_bytes_per_token=0,  # it does not say, and nothing of ours moves them
        )

    # How it is

    async def watch(self, on_gone: Callable[[str], None]) -> None:
        """Look at it for ever; ``on_gone`` hears why, each time that it counts as gone."""
        while True:
            await self._clock.sleep(self._settings.poll_s)
            try:
                load = await self._look()
            except ServerFault as fault:
                if self.health.on_failure(refused=fault.refused):
                    log.warning("%s is gone: %s", self._served.url, fault)
                    on_gone(f"the server is gone: {fault}")
            else:
                if self.health.on_answer(load):
                    log.info("%s is back", self._served.url)

    async def _look(self) -> ServerLoad:
        """Raises ``ServerFault`` when it is not well. One without these paths is well."""
        before = self._open_requests()
        try:
            async with asyncio.timeout(self._settings.poll_timeout_s):
                status, _ = await self.client.ask("/health")
                if status >= UNWELL:
                    raise ServerFault(f"/health says {status}")
                status, metrics = await self.client.ask("/metrics")
        except TimeoutError as error:
            raise ServerFault("no answer in time") from error
        self._open_at_look = max(before, self._open_requests())
        return parse_metrics(metrics.decode(errors="replace")) if status == OK else ServerLoad()

    @property
    def others(self) -> tuple[int, int]:
        """Requests of others that it ran and let wait when it was looked at."""
        load, own = self.health.load, self._open_at_look
        own_waiting = max(0, own - load.running)
        return max(0, load.running - own), max(0, load.waiting - own_waiting)

    @property
    def pages_seen(self) -> int:
        """Pages that were held when it was looked at."""
        return math.ceil(self.health.load.kv_usage * self.capabilities.kv_pages_total)


def _models(data: bytes) -> list[dict[str, Any]]:
    try:
        found = orjson.loads(data)["data"]
        return [model for model in found if isinstance(model, dict)]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ServerFault(f"/v1/models is no list of models: {error}") from error
