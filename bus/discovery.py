"""NATS service discovery for what clients may ask (the protocol of NATS micro services, ADR-32).

`$SRV.PING` and `$SRV.INFO` are NATS's own subjects, outside our prefix and our catalogue, as
JetStream's API is. Whoever answers there says what it is called, and on which subjects it serves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bus.names import encode_name
from bus.subjects import ANY
from schemas.catalogue import CATALOGUE, Component

#: One service, of which each process that serves clients is an instance.
SERVICE: Final = "switchyard"
#: What may be asked; STATS is not served: our own counters say more.
VERBS: Final = ("PING", "INFO")
#: Who may look for services, and who says that it is one.
LOOKERS: Final[tuple[Component, ...]] = ("client", "operator")
SERVERS: Final[tuple[Component, ...]] = ("gateway",)
_TYPE: Final = "io.nats.micro.v1.{}_response"


@dataclass(frozen=True, slots=True)
class Instance:
    """One process that serves clients."""

    name: str
    version: str
    prefix: str

    @property
    def subjects(self) -> dict[str, bytes]:
        """Subject -> what is answered there."""
        answers = {"PING": self._told("ping"), "INFO": self._told("info", self._info())}
        return {s: answers[verb] for verb in VERBS for s in subjects_of(verb, self.name)}

    def _info(self) -> dict[str, object]:
        return {
            "description": "Tokens and answers for clients on NATS; see deploy/CLIENTS.md",
            "endpoints": [self._endpoint(subject) for subject in _served(self.prefix)],
        }

    def _endpoint(self, subject: str) -> dict[str, object]:
        noun, verb = subject.split(".")[2:4]
        return {"name": f"{noun}-{verb}", "subject": subject, "queue_group": "gateway"}

    def _told(self, kind: str, more: dict[str, object] | None = None) -> bytes:
        about = {
            "type": _TYPE.format(kind),
            "name": SERVICE,
            "id": encode_name(self.name),
            "version": self.version,
            "metadata": {},
        }
        return json.dumps(about | (more or {})).encode()


def subjects_of(verb: str, instance: str) -> tuple[str, str, str]:
    """All services, those of our name, one instance of them."""
    everyone = f"$SRV.{verb}"
    ours = f"{everyone}.{SERVICE}"
    return (everyone, ours, f"{ours}.{ANY if instance == ANY else encode_name(instance)}")


def _served(prefix: str) -> Sequence[str]:
    """The subjects on which gateways serve clients, whichever their tenant."""
    served = (e for e in CATALOGUE if {"client"} == set(e.senders) and "gateway" in e.readers)
    return [f"{prefix}.{entry.subject.format(tenant='*')}" for entry in served]
