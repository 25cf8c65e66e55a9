"""How a process says that it lives, and answers who asks what it is.

Heartbeats say what is; readers decide by their own clock what silence means. The last one says
``stopped``, so that a goodbye is not taken for a death.
"""

import os
import socket

from bus.bus import Received, Subscription
from bus.streams import KEPT_IN
from bus.subjects import EVERYONE, heartbeat_sent, show_component
from components.host.component import Component
from components.host.host import Host
from components.host.version import version
from schemas.codes import ProcessState
from schemas.fleet import HeartbeatSent, ShowComponent, ShowComponentReply


class Presence:
    """The state of one process as the others see it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._component: Component | None = None
        self._state: ProcessState = "starting"
        self._since_ms = host.clock.wall_ms()
        self._name = socket.gethostname()
        self._version = f"switchyard {version()}"
        self._subject = heartbeat_sent(host.component, host.instance)
        self._subscriptions: list[Subscription] = []

    async def start(self, component: Component) -> None:
        """Send the first heartbeat, then one per interval; answer ``ShowComponent``."""
        self._component = component
        for name in (self._host.instance, EVERYONE):
            self._subscriptions.append(
                await self._host.bus.subscribe(show_component(name), ShowComponent, self._answer)
            )
        self.send()
        self._host.bus.on_reconnect(self.send)
        self._host.tasks.every("heartbeat", self._host.settings.heartbeat_ms / 1000, self.send)

    def enter(self, state: ProcessState) -> None:
        """Be in ``state`` from now on, and say so at once."""
        self._state, self._since_ms = state, self._host.clock.wall_ms()
        self.send()

    def send(self) -> None:
        """Publish one heartbeat, unless it would wait for a server: it is only true now."""
        if self._host.bus.connected:
            self._host.bus.publish(self._subject, self.heartbeat())

    def heartbeat(self) -> HeartbeatSent:
        """What is true now."""
        more = dict(self._component.heartbeat()) if self._component else {}
        state = more.pop("state", self._state)
        return HeartbeatSent.model_validate(
            {
                "component": self._host.component,
                "instance": self._host.instance,
                "process_epoch": self._host.epoch,
                # Only a process that is ready can be less than well; starting and draining stand.
                "state": state if self._state == "ready" else self._state,
                "since_ms": self._since_ms,
                "pid": os.getpid(),
                "host": self._name,
                **more,
            }
        )

    async def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions = []

    def _answer(self, question: Received[ShowComponent]) -> None:
        bus = self._host.bus
        counters = {f"bus_{name}": count for name, count in bus.counters.items()}
        reply = ShowComponentReply(
            heartbeat=self.heartbeat(),
            counters={**counters, **self._host.counters, "side_tasks": len(self._host.tasks)},
            notes=(
                self._version,
                f"bus {'connected' if bus.connected else 'away'}",
            ),
            published={name: count for name, count in bus.sent.items() if name in KEPT_IN},
        )
        bus.respond(question, reply)
