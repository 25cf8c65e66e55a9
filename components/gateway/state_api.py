"""What bridges know of engines outside, over HTTP: `/state/engines`, `/state/stats`.

The gateway keeps none of it: each question goes to every bridge that lives, and their answers are
merged. Of an engine that two bridges hear, the younger state stands.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from bus import subjects
from bus.errors import AskTimedOut, BusError, NoResponders
from components.gateway.desk import Desk
from components.gateway.errors import ApiError
from schemas.engine import EngineStateReceived, EngineStateSeen, ShowStates, ShowStatesReply

ANSWER_S: Final = 2.0
BRIDGES_MAX: Final = 16
#: Names of the seed's statistics, and what they are here.
SEED_NAMES: Final = {
    "total_received": "received_total",
    "valid_states": "valid_total",
    "invalid_states": "invalid_total",
    "unicast_received": "unicast_received_total",
    "broadcast_received": "broadcast_received_total",
}


def state_router(desk: Desk) -> APIRouter:
    """The three paths."""
    router = APIRouter(prefix="/state")

    @router.get("/engines")
    async def engines(
        after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 500
    ) -> JSONResponse:
        """The last state of each engine, by the order of their ids."""
        replies = await _ask(desk, ShowStates(after=after, limit=limit))
        seen = merged(replies)[:limit]
        more = any(reply.more for reply in replies) or len(merged(replies)) > limit
        following = seen[-1].state.engine_id if more and seen else None
        return JSONResponse({"engines": [plain(s) for s in seen], "next": following})

    @router.get("/engines/{engine_id:path}")
    async def engine(
        engine_id: str, history: Annotated[int, Query(ge=0, le=100)] = 0
    ) -> JSONResponse:
        """One engine, with its last states."""
        replies = await _ask(desk, ShowStates(engine_id=engine_id, history=history))
        seen = merged(replies)
        if not seen:
            raise ApiError(404, "engine_not_found", f"no bridge has heard of {engine_id!r}")
        states = sorted((s for r in replies for s in r.history), key=lambda s: s.received_ms)
        shown = [fields(s) for s in states[-history:]] if history else []
        return JSONResponse({**plain(seen[0]), "history": shown})

    @router.get("/stats")
    async def stats() -> JSONResponse:
        """What bridges counted, under the seed's names and under ours."""
        return JSONResponse(statistics(await _ask(desk, ShowStates(limit=1))))

    return router


async def _ask(desk: Desk, question: ShowStates) -> list[ShowStatesReply]:
    """The answers of all bridges; raises ``ApiError`` when there are none."""
    bridges = [b.instance for b in desk.others.of("bridge")][:BRIDGES_MAX]
    if not bridges:
        raise ApiError(503, "no_bridge", "no bridge is running")
    found = await asyncio.gather(*(_ask_one(desk, name, question) for name in bridges))
    replies = [reply for reply in found if reply is not None]
    if not replies:
        raise ApiError(504, "bridge_timeout", f"no bridge answered within {ANSWER_S:g} s")
    return replies


async def _ask_one(desk: Desk, bridge: str, question: ShowStates) -> ShowStatesReply | None:
    try:
        return await desk.host.bus.ask(
            subjects.show_states(bridge), question, ShowStatesReply, timeout_s=ANSWER_S
        )
    except (NoResponders, AskTimedOut, BusError):
        return None


def merged(replies: Sequence[ShowStatesReply]) -> list[EngineStateSeen]:
    """Each engine once, the youngest, by the order of their ids."""
    youngest: dict[str, EngineStateSeen] = {}
    for seen in (s for reply in replies for s in reply.engines):
        known = youngest.get(seen.state.engine_id)
        if known is None or seen.age_ms < known.age_ms:
            youngest[seen.state.engine_id] = seen
    return [youngest[name] for name in sorted(youngest)]


def plain(seen: EngineStateSeen) -> dict[str, Any]:
    """The seed's fields, and beside them what is known of the state."""
    about = seen.model_dump(exclude={"state"})
    return {**fields(seen.state), **about}


def fields(state: EngineStateReceived) -> dict[str, Any]:
    return state.model_dump()


def statistics(replies: Sequence[ShowStatesReply]) -> dict[str, Any]:
    """Sums over all bridges. ``valid_rate`` is the seed's: of what was received.

    The seed had one socket; its names for that tell the first bridge's, ``listeners`` all.
    """
    totals: Counter[str] = Counter()
    levels: Counter[str] = Counter()
    last_ms = 0
    for reply in replies:
        totals.update({n: c for n, c in reply.totals.items() if n != "last_received_ms"})
        levels.update(reply.levels)
        last_ms = max(last_ms, reply.totals.get("last_received_ms", 0))
    received = totals["received_total"]
    rate = 100 * totals["valid_total"] / received if received else 0.0
    return {
        **listener(replies[0]),
        **{old: totals[new] for old, new in SEED_NAMES.items()},
        "last_received": last_ms / 1000 if last_ms else None,
        "active_engines": levels["active_engines"],
        "total_engines": levels["total_engines"],
        "valid_rate": f"{rate:.2f}%",
        "bridges": len(replies),
        "listeners": [listener(reply) for reply in replies],
        "totals": dict(sorted(totals.items())),
        "levels": dict(sorted(levels.items())),
    }


def listener(reply: ShowStatesReply) -> dict[str, Any]:
    """Where a bridge listens, under the seed's names; the port is None before it is known."""
    host, _, port = reply.address.removeprefix("udp://").rpartition(":")
    return {
        "bind_address": host.strip("[]"),
        "udp_port": int(port) if port else None,
        "network_mode": reply.network_mode,
        "stale_threshold_ms": reply.stale_after_ms,
    }
