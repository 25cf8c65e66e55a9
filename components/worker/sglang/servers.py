"""The servers as an agent reaches them: connections, looks at their health, their figures.

In the background each server is looked at and asked for its figures. One that is found dead gets
no job until it answers again, and ``on_dead`` hears of it.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from components.host.clock import Clock
from components.host.errors import CannotStart
from components.host.tasks import Tasks
from components.worker.api_key import bearer
from components.worker.sglang.figures import UNKNOWN, Figures, figures_of, whole
from components.worker.sglang.http import CannotConnect, Origin
from components.worker.sglang.merging import merge_server_info
from components.worker.sglang.pairs import (
    PairTable,
    PostRoleSwitch,
    RoleKept,
    RoleSwitch,
    RoleSwitched,
    Server,
    Side,
    Wait,
)
from components.worker.sglang.requests import allowed_headers
from components.worker.sglang.settings import SglangSettings

#: Farewells that are under way at once; beyond that closing the connection must do.
ABORTS_MAX: Final = 256
#: How long a server may wait for transfers to end before it empties its cache.
FLUSH_WAIT_S: Final = 30


class Servers:
    """See the top of the file."""

    def __init__(
        self,
        pairs: PairTable,
        settings: SglangSettings,
        tasks: Tasks,
        clock: Clock,
        on_dead: Callable[[Server], None],
    ) -> None:
        self.pairs = pairs
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._on_dead = on_dead
        self._figures: dict[str, Figures] = {}
        self._no_abort: set[str] = set()
        self._aborts = 0
        self.origins: dict[str, Origin] = {}

    async def start(self) -> None:
        """Raises ``CannotStart`` when one side has nobody."""
        headers = allowed_headers(bearer(self._settings.api_key_file))
        for server in self.pairs.servers:
            self.origins[server.url] = Origin(
                server.url,
                self._clock,
                headers=headers,
                connect_timeout_s=self._settings.connect_timeout_s,
                idle_max=self._settings.idle_connections_max,
                idle_s=self._settings.idle_connection_s,
            )
        await asyncio.gather(*map(self._ask_figures, self.pairs.servers))
        for side in ("prefill", "decode"):
            if not any(s.url in self._figures for s in self.pairs.of_side(side)):
                raise CannotStart(f"no {side} server answers")
        for server in self.pairs.servers:
            _ = self._tasks.spawn("watch a server", self._watch(server))

    def close(self) -> None:
        for origin in self.origins.values():
            origin.close()

    # Their figures

    @property
    def context_tokens_max(self) -> int | None:
        """The least that a server says."""
        said = [f.context_tokens_max for f in self._figures.values() if f.context_tokens_max]
        return min(said, default=None)

    @property
    def kv_tokens(self) -> int | None:
        """What all decode servers hold; None when one does not say."""
        return whole(self._decode_figures, "kv_tokens")

    @property
    def seqs_max(self) -> int | None:
        """What all decode servers run at once; None when one does not say."""
        return whole(self._decode_figures, "seqs_max")

    @property
    def text_is_delta(self) -> bool | None:
        """Whether their chunks hold the new text only; None where they differ or do not say."""
        said = {None if f is None else f.text_is_delta for f in self._decode_figures}
        return said.pop() if len(said) == 1 else None

    @property
    def _decode_figures(self) -> list[Figures | None]:
        return [self._figures.get(server.url) for server in self.pairs.of_side("decode")]

    async def _ask_figures(self, server: Server) -> None:
        info = await self._ask_info(server)
        if info is not None:
            self._figures[server.url] = figures_of(info)
        elif await self._looks_well(server):  # an older one, that lives
            self._figures.setdefault(server.url, UNKNOWN)

    async def _ask_info(self, server: Server) -> dict[str, Any] | None:
        try:
            status, body = await self.origins[server.url].fetch(
                "GET", "/get_server_info", timeout_s=self._settings.health_timeout_s
            )
            info = orjson.loads(body) if status == 200 else None
        except (CannotConnect, orjson.JSONDecodeError):
            return None
        return info if isinstance(info, dict) else None

    async def server_info(self) -> dict[str, Any]:
        """The figures of all, as one; servers that do not answer are left out."""
        prefill, decode = [
            await asyncio.gather(*map(self._ask_info, self.pairs.of_side(side)))
            for side in ("prefill", "decode")
        ]
        return merge_server_info(prefill, decode)

    # Their health

    async def _watch(self, server: Server) -> None:
        """Look at it for ever."""
        asked_s = self._clock.now_s()
        while True:
            await self._clock.sleep(self._settings.health_interval_s)
            well = await self._looks_well(server)
            if self.pairs.looked(server, well=well):
                self._on_dead(server)
            if well and self._clock.now_s() - asked_s >= self._settings.info_interval_s:
                asked_s = self._clock.now_s()
                await self._ask_figures(server)

    async def _looks_well(self, server: Server) -> bool:
        """Any answer below 500 is one: an older server may not know the path."""
        try:
            status, _ = await self.origins[server.url].fetch(
                "GET", self._settings.health_path, timeout_s=self._settings.health_timeout_s
            )
        except CannotConnect:
            return False
        return status < 500

    # What they are told

    def abort(self, server: Server, rids: tuple[str, ...]) -> None:
        """End these requests there. The connection is closed; a server may take long to notice."""
        if server.url not in self._no_abort and self._aborts < ABORTS_MAX:
            self._aborts += 1
            _ = self._tasks.spawn("say farewell", self._abort_at(server.url, rids))

    async def _abort_at(self, url: str, rids: tuple[str, ...]) -> None:
        try:
            for rid in rids:
                status, _ = await self.origins[url].fetch(
                    "POST",
                    "/abort_request",
                    orjson.dumps({"rid": rid}),
                    timeout_s=self._settings.health_timeout_s,
                )
                if status == 404:  # an older server
                    self._no_abort.add(url)
                    return
        except CannotConnect:
            pass  # it is gone, and so is what it ran
        finally:
            self._aborts -= 1

    async def flush_caches(self) -> bool:
        """Empty the prefix caches; each server waits for transfers first. True when all did."""
        path = f"/flush_cache?timeout={FLUSH_WAIT_S}"
        calls = [
            origin.fetch("POST", path, timeout_s=FLUSH_WAIT_S + self._settings.health_timeout_s)
            for origin in self.origins.values()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return all(not isinstance(a, BaseException) and a[0] == 200 for a in answers)

    async def switch_role(
        self,
        url: str,
        side: Side,
        *,
        drain_timeout_s: float = 300.0,
        bootstrap_port: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RoleSwitched | RoleKept:
        """Make a prefill server a decode server, or the other way round. Raises KeyError."""
        switch = RoleSwitch(
            self.pairs,
            url,
            side,
            deadline_s=self._clock.now_s() + drain_timeout_s,
            bootstrap_port=bootstrap_port,
            options=dict(options or {}),
        )
        step = switch.next(self._clock.now_s())
        while True:
            match step:
                case Wait():
                    await self._clock.sleep(step.until_s - self._clock.now_s())
                    step = switch.next(self._clock.now_s())
                case PostRoleSwitch():
                    status, answer = await self._post_role_switch(step)
                    step = switch.on_answer(status, answer, self._clock.now_s())
                case RoleSwitched() | RoleKept():
                    return step

    async def _post_role_switch(self, step: PostRoleSwitch) -> tuple[int, dict[str, Any]]:
        try:
            status, body = await self.origins[step.url].fetch(
                "POST",
                "/pd_role_switch",
                orjson.dumps(step.body),
                timeout_s=self._settings.request_timeout_s,
            )
            answer = orjson.loads(body)
        except CannotConnect as error:
            return 0, {"message": str(error)}
        except orjson.JSONDecodeError:
            return status, {"message": "an answer that is no JSON"}
        return status, answer if isinstance(answer, dict) else {}
