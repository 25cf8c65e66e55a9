"""Asks nodes over HTTP whether they are well: `GET http://ADDRESS:PORT/health`.

Off unless set. One registry probes (whoever answers for nodes); at most ``probes_max`` at a time,
spread over the interval so that not all nodes are asked at once. Nothing is followed or read beyond
the head of the answer.
"""

import asyncio
import random
from collections.abc import Callable

import httpx

from components.host.host import Host
from components.registry.nodes import NodeTable
from components.registry.settings import RegistrySettings
from schemas.nodes import Node, NodeEvent


class Prober:
    """``changed`` hears of a node that fell ill or recovered."""

    def __init__(
        self,
        host: Host,
        settings: RegistrySettings,
        table: NodeTable,
        changed: Callable[[str, NodeEvent], None],
    ) -> None:
        self._host = host
        self._settings = settings
        self._table = table
        self._changed = changed
        self._client: httpx.AsyncClient | None = None
        self._room = asyncio.Semaphore(settings.probes_max)

    def start(self) -> None:
        if self._settings.probe_interval_s > 0:
            limits = httpx.Limits(max_connections=self._settings.probes_max)
            self._client = httpx.AsyncClient(
                timeout=self._settings.probe_timeout_s, limits=limits, trust_env=False
            )
            _ = self._host.tasks.spawn("nodes.probe", self._probe_again())

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _probe_again(self) -> None:
        while True:
            began_s = self._host.clock.now_s()
            nodes = list(self._table.to_probe(began_s))
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(self._probe(node))
            left_s = began_s + self._settings.probe_interval_s - self._host.clock.now_s()
            await self._host.clock.sleep(max(0.05, left_s))

    async def _probe(self, node: Node) -> None:
        await self._host.clock.sleep(random.random() * self._settings.probe_interval_s / 2)
        async with self._room:
            well = await self._is_well(node)
        self._host.counters.add("probes_total")
        event = self._table.probed(
            node.node_id,
            well=well,
            failures_max=self._settings.probe_failures_max,
            successes_min=self._settings.probe_successes_min,
        )
        if event is not None:
            self._changed(node.node_id, event)

    async def _is_well(self, node: Node) -> bool:
        client = self._client
        if client is None:
            return False
        host = f"[{node.node_address}]" if ":" in node.node_address else node.node_address
        try:
            url = f"http://{host}:{node.node_port}{self._settings.probe_path}"
            async with client.stream("GET", url, follow_redirects=False) as answer:
                return answer.status_code == httpx.codes.OK
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
