"""The models that workers serve: each card is asked for once per life of a worker."""

import asyncio
from collections.abc import Iterator
from typing import Final

from bus.errors import BusError
from bus.subjects import show_model
from components.gateway.errors import ApiError, model_not_found
from components.gateway.pool import Pool
from components.gateway.rendering import BadModelCard, Model
from components.host.host import Host
from schemas.fleet import HeartbeatSent, ModelCard, ShowModel, ShowModelReply

ASK_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.5
#: Workers whose present life is known to have been asked; the oldest is asked again.
LIVES_MAX: Final = 4096
_SERVING: Final = frozenset({"ready", "degraded", "draining"})


class Models:
    """Known models by name, at most ``models_max``. They stay when their workers die: requests then
    wait for the next worker instead of being told that the model never was.
    """

    def __init__(self, host: Host, pool: Pool, models_max: int) -> None:
        self._host = host
        self._pool = pool
        self._models_max = models_max
        self._models: dict[str, Model] = {}
        self._lives: dict[str, int] = {}
        self._asking: set[str] = set()

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> Model:
        """Raises ``ApiError`` for a model that no worker has named."""
        model = self._models.get(name)
        if model is None:
            raise model_not_found(name)
        return model

    def heard(self, heartbeat: HeartbeatSent) -> None:
        """A worker speaks: ask for its model's card when it is new, or the worker is."""
        name = heartbeat.model
        if name is None or heartbeat.state not in _SERVING:
            return
        if self._lives.get(heartbeat.instance) == heartbeat.process_epoch and name in self._models:
            return
        if (
            name in self._asking
            or len(self._models.keys() | self._asking | {name}) > self._models_max
        ):
            return
        self._asking.add(name)
        _ = self._host.tasks.spawn(f"show_model {name}", self._ask(name, heartbeat))

    async def _ask(self, name: str, heartbeat: HeartbeatSent) -> None:
        try:
            reply = await self._host.bus.ask(
                show_model(name), ShowModel(model=name), ShowModelReply, timeout_s=ASK_TIMEOUT_S
            )
            await self._take(name, reply.card)
            if len(self._lives) >= LIVES_MAX:
                del self._lives[next(iter(self._lives))]
            self._lives[heartbeat.instance] = heartbeat.process_epoch
        except (BusError, BadModelCard, ApiError) as error:
            self._host.counters.add("model_cards_failed_total")
            self._host.log.warning("no card of model %r: %s", name, error)
            await asyncio.sleep(RETRY_S)  # the next heartbeat asks again
        finally:
            self._asking.discard(name)

    async def _take(self, name: str, card: ModelCard) -> None:
        known = self._models.get(name)
        if card.model != name:
            raise BadModelCard(f"asked for {name!r}, got the card of {card.model!r}")
        if known is None or known.card != card:
            self._models[name] = await self._pool.run(lambda: Model.from_card(card))
