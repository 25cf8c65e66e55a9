"""Which processes an `up` runs. Pure: options in, command lines out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

#: Ctrl-C ends them in this order: no new requests, then nobody who would wait for another.
STOP_ORDER: Final = (
    "gateway",
    "bridge",
    "scheduler",
    "router",
    "worker",
    "registry",
    "replay",
)
Role = Literal["prefill", "decode", "aggregated"]


class BadPlan(ValueError):
    """These engines cannot serve a request together."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One process: `switchyard COMPONENT arguments...`, and what its environment adds."""

    component: str
    instance: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Engines:
    """How many engines of each role."""

    prefill: int
    decode: int
    aggregated: int

    @classmethod
    def asked_for(
        cls, prefill: int | None = None, decode: int | None = None, aggregated: int | None = None
    ) -> "Engines":
        """What was not asked for is 0 beside what was; nothing at all means 1 prefill + 1 decode.

        Raises ``BadPlan`` when a prompt or an answer would have no engine.
        """
        if not aggregated:
            # One half named implies the other: a prefill engine alone answers nobody.
            prefill = 1 if prefill is None else prefill
            decode = 1 if decode is None else decode
        engines = cls(prefill or 0, decode or 0, aggregated or 0)
        if bool(engines.prefill) != bool(engines.decode):
            raise BadPlan("prefill and decode engines come together: give at least one of each")
        if not engines.prefill and not engines.aggregated:
            raise BadPlan("no engine at all: give --prefill and --decode, or --aggregated")
        return engines

    def named(self) -> list[tuple[Role, str]]:
        """Role and instance of each, prefill first."""
        counts: tuple[tuple[Role, int], ...] = (
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("aggregated", self.aggregated),
        )
        return [(role, f"{role}-{index}") for role, count in counts for index in range(count)]


def planned(
    engines: Engines,
    *,
    http: tuple[str, int],
    udp: tuple[str, int],
    worker: Sequence[str] = (),
    devices: Sequence[int] = (),
    tp: int = 1,
    urls: Sequence[str] = (),
    bridge: Sequence[str] = (),
) -> tuple[Planned, ...]:
    """All processes, in the order in which they are started.

    ``worker`` goes to every worker, ``bridge`` to the bridge. ``devices`` gives each worker in turn
    ``tp`` GPUs of its own, ``urls`` the address of its engine.
    """
    names = engines.named()
    if devices and len(devices) < len(names) * tp:
        raise BadPlan(
            f"{len(names)} engines of {tp} GPU{'s' if tp > 1 else ''},"
            f" but only {len(devices)} devices are named"
        )
    workers = [
        Planned(
            "worker",
            instance,
            ("--role", role, *worker, *(("--set", f"url={urls[place]}") if urls else ())),
            _sees(devices[place * tp : (place + 1) * tp]),
        )
        for place, (role, instance) in enumerate(names)
    ]
    return (
        Planned("registry", "registry-0"),
        Planned("gateway", "gateway-0", ("--host", http[0], "--port", str(http[1]))),
        Planned("scheduler", "scheduler-0"),
        Planned("router", "router-0"),
        *workers,
        Planned("bridge", "bridge-0", ("--host", udp[0], "--udp-port", str(udp[1]), *bridge)),
        Planned("replay", "replay-0", ("serve",)),
    )


def _sees(devices: Sequence[int]) -> tuple[tuple[str, str], ...]:
    return (("CUDA_VISIBLE_DEVICES", ",".join(map(str, devices))),) if devices else ()
