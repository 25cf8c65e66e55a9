"""NATS service discovery for what clients may ask (the protocol of NATS micro services, ADR-32).

`$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` are NATS's own subjects, outside our prefix and our
catalogue, as JetStream's API is. Whoever answers there says what it is called, on which subjects it
serves, and what was asked there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from bus.names import encode_name
from bus.served import Served
from bus.subjects import ANY
from schemas.catalogue import CATALOGUE, Component

#: One service per kind of process that serves clients; each process is an instance of it.
SERVICES: Final[dict[Component, tuple[str, str]]] = {
    "gateway": ("switchyard", "Tokens and answers for clients on NATS; see deploy/CLIENTS.md"),
    "registry": ("switchyard-registry", "Who is there and who should be; see deploy/CLIENTS.md"),
}
#: What may be asked.
VERBS: Final = ("PING", "INFO", "STATS")
#: Who may look for services.
LOOKERS: Final[tuple[Component, ...]] = ("client", "operator")
_TYPE: Final = "io.nats.micro.v1.{}_response"

#: What is answered, made when it is asked for.
Answer = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Instance:
    """One process that serves clients; ``started_ms`` since 1970."""

    component: Component
    name: str
    version: str
    prefix: str
    started_ms: int

    def subjects(self, served: Mapping[str, Served]) -> dict[str, Answer]:
        """Subject -> what answers there. ``served`` holds counts by subject, as they grow."""
        answers: dict[str, Answer] = {
            "PING": partial(self._told, "ping", dict),
            "INFO": partial(self._told, "info", self._info),
            "STATS": partial(self._told, "stats", partial(self._stats, served)),
        }
        service, _ = SERVICES[self.component]
        return {s: answers[verb] for verb in VERBS for s in subjects_of(verb, service, self.name)}

    def _told(self, kind: str, more: Callable[[], dict[str, Any]]) -> bytes:
        service, _ = SERVICES[self.component]
        about = {
            "type": _TYPE.format(kind),
            "name": service,
            "id": encode_name(self.name),
            "version": self.version,
            "metadata": {},
        }
        return json.dumps(about | more()).encode()

    def _info(self) -> dict[str, Any]:
        _, description = SERVICES[self.component]
        return {"description": description, "endpoints": self._endpoints()}

    def _stats(self, served: Mapping[str, Served]) -> dict[str, Any]:
        started = datetime.fromtimestamp(self.started_ms / 1000, tz=UTC)
        nothing = Served()
        return {
            "started": started.isoformat().replace("+00:00", "Z"),
            "endpoints": [
                endpoint | _figures(served.get(endpoint["subject"], nothing))
                for endpoint in self._endpoints()
            ],
        }

    def _endpoints(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "-".join(subject.split(".")[2:4]),
                "subject": self.prefix + subject,
                "queue_group": self.component,
            }
            for subject in _served_by(self.component)
        ]


def subjects_of(verb: str, service: str, instance: str) -> tuple[str, str, str]:
    """All services, those of this name, one instance of them."""
    everyone = f"$SRV.{verb}"
    ours = f"{everyone}.{service}"
    return (everyone, ours, f"{ours}.{ANY if instance == ANY else encode_name(instance)}")


def _figures(served: Served) -> dict[str, Any]:
    """Times in ns."""
    return {
        "num_requests": served.requests,
        "num_errors": served.errors,
        "last_error": served.last_error,
        "processing_time": served.spent_ns,
        "average_processing_time": served.spent_ns // max(1, served.requests),
    }


def _served_by(component: Component) -> Sequence[str]:
    """Behind the prefix: the subjects on which it serves clients, whichever their tenant."""
    served = (e for e in CATALOGUE if "client" in e.senders and component in e.readers)
    return [f".{entry.subject.format(tenant=ANY)}" for entry in served]
