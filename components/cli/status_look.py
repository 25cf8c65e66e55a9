"""Asks a yard everything that `switchyard status` shows.

Each part is asked on its own, so that what is away hides nothing else: processes answer for
themselves, the registry adds engines and whom it has lost, JetStream says what it holds.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bus.errors import BusError
from bus.history import History
from bus.streams import STREAMS
from bus.subjects import EVERYONE, show_component, show_fleet
from components.cli import keyring
from components.cli.errors import CommandFailed
from components.cli.found import Found
from components.cli.operator_bus import operator
from components.cli.own_nats import NAME as NATS
from components.cli.probe import nats_info
from components.cli.status_view import BusState, Snapshot, StreamState, components_of
from schemas.fleet import ShowComponent, ShowComponentReply, ShowFleet, ShowFleetReply

#: Whoever is well answers within milliseconds; this is how long the others are waited for.
ANSWERS_S: Final = 0.5
REGISTRY_S: Final = 2.0
#: A cluster may be electing a leader.
JETSTREAM_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Answers:
    """What processes said; ``error`` when the bus could not be reached at all."""

    shown: Sequence[ShowComponentReply] = ()
    fleet: ShowFleetReply | None = None
    connected: bool = False
    error: str = ""


async def look(yard: Found) -> Snapshot:
    """One snapshot; never raises for what is away."""
    answers, bus = await asyncio.gather(_ask_processes(yard), _ask_server(yard))
    processes = yard.page.processes if yard.page else {}
    expected = {name: p.component for name, p in processes.items() if p.component != NATS}
    return Snapshot(
        at_ms=time.time_ns() // 1_000_000,
        url=yard.page.url if yard.page else "",
        components=components_of(answers.shown, answers.fleet, expected),
        engines=answers.fleet.engines if answers.fleet else (),
        bus=replace(bus, connected=answers.connected, error=answers.error or bus.error),
        registry_answers=answers.fleet is not None,
        registered=answers.fleet.registered if answers.fleet else (),
    )


async def _ask_processes(yard: Found) -> _Answers:
    try:
        async with operator(yard) as bus:
            shown, fleet = await asyncio.gather(
                bus.ask_all(
                    show_component(EVERYONE), ShowComponent(), ShowComponentReply, wait_s=ANSWERS_S
                ),
                bus.ask(show_fleet(), ShowFleet(), ShowFleetReply, timeout_s=REGISTRY_S),
                return_exceptions=True,
            )
    except (BusError, CommandFailed) as error:
        return _Answers(error=str(error))
    for answer in (shown, fleet):
        if isinstance(answer, BaseException) and not isinstance(answer, BusError):
            raise answer
    return _Answers(
        shown=() if isinstance(shown, BaseException) else [one.message for one in shown],
        fleet=None if isinstance(fleet, BaseException) else fleet,
        connected=True,
    )


async def _ask_server(yard: Found) -> BusState:
    info = await nats_info(yard.nats_url)
    bus = BusState(yard.nats_url, server_version=str(info.get("version", "")))
    try:
        key_file = keyring.find(yard.keys, keyring.HISTORY, keyring.HISTORY)
        async with (
            asyncio.timeout(JETSTREAM_S),
            History(yard.nats_url, key_file, prefix=yard.prefix) as history,
        ):
            states = [await _stream_state(history, stream.name) for stream in STREAMS]
    except TimeoutError:
        return replace(bus, error=f"no answer within {JETSTREAM_S:g} s")
    except (BusError, CommandFailed) as error:
        return replace(bus, error=str(error))
    found = tuple(state for state in states if isinstance(state, StreamState))
    missing = tuple(state for state in states if isinstance(state, str))
    return replace(bus, jetstream=bool(found), streams=found, missing=missing)


async def _stream_state(history: History, name: str) -> StreamState | str:
    """What the stream holds, or why that is not known."""
    try:
        state = await history.state(name)
    except BusError as error:
        return str(error)
    return StreamState(name, state.messages, state.bytes, state.first_seq, state.last_seq)
