"""What a small fleet should do with a trace: the engine models alone, without the control plane.

Requests wait in one line for an engine (or a prefill and a decode engine together) with a free
place, run there, and between the two phases their KV travels. No messages, no processes: so the
difference between this and a live run is what the control plane costs.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Literal

from components.domain.engine_model import (
    Admitted,
    EngineLimits,
    EngineModel,
    Finished,
    FirstToken,
    ModelEvent,
    ModelRequest,
    PrefillFinished,
    RequestKind,
)
from components.domain.profiles import Profile, transfer_s
from components.domain.traces import Arrival

Placement = Literal["round_robin", "least_loaded"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many engines of which kind, and what lies between them.

    Either `prefill` and `decode` engines, or `aggregated` ones. `overhead_ms` passes between a
    request's arrival and its submission to the first engine, `transfer_latency_ms` plus the bytes
    over `bandwidth_gb_per_s` between the end of its prefill and its submission to the second.
    `running_max` bounds the requests sent to one engine and not ended there; the others wait, first
    come first served. `decode_limits` None: the same as `limits`.
    """

    prefill: int = 1
    decode: int = 1
    aggregated: int = 0
    limits: EngineLimits = field(default_factory=EngineLimits)
    decode_limits: EngineLimits | None = None
    running_max: int | None = None
    placement: Placement = "least_loaded"
    bandwidth_gb_per_s: float = 40.0
    transfer_latency_ms: float = 2.0
    overhead_ms: float = 0.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        two_phase = self.prefill > 0 and self.decode > 0
        if two_phase == (self.aggregated > 0) or min(self.prefill, self.decode) < 0:
            raise ValueError("a fleet has prefill and decode engines, or aggregated ones")


@dataclass(slots=True)
class Predicted:
    """What becomes of one arrival. Times are seconds since the first arrival or, in `ttft_s` and
    `e2e_s`, since this one; `engine` computes the prompt, `decode_engine` the tokens.
    """

    arrival: Arrival
    engine: int = -1
    decode_engine: int = -1
    hit_tokens: int = 0
    first_token_s: float = inf
    finish_s: float = inf

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival.at_s

    @property
    def e2e_s(self) -> float:
        return self.finish_s - self.arrival.at_s


def predict(
    arrivals: Sequence[Arrival], profile: Profile, fleet: Fleet | None = None
) -> list[Predicted]:
    """Run `arrivals` (in order of time) through `fleet` in virtual time; one result for each.

    Raises RequestTooLarge when one can never fit.
    """
    return _Simulation(arrivals, profile, fleet or Fleet()).run()


@dataclass(slots=True)
class _Engine:
    number: int
    model: EngineModel
    outstanding: set[int] = field(default_factory=set)


class _Pool:
    """Engines of one kind and the rule that picks one with a free place."""

    def __init__(self, engines: list[_Engine], fleet: Fleet) -> None:
        self.engines = engines
        self._placement = fleet.placement
        self._outstanding_max = inf if fleet.running_max is None else fleet.running_max
        self._turn = 0

    def pick(self) -> _Engine | None:
        """An engine for the next request; None when every place is taken."""
        size = len(self.engines)
        turns = [self.engines[(self._turn + i) % size] for i in range(size)]
        free = [engine for engine in turns if len(engine.outstanding) < self._outstanding_max]
        if not free:
            return None
        if self._placement == "least_loaded":
            return min(free, key=lambda engine: len(engine.outstanding))
        return free[0]

    def take(self, engine: _Engine, request: int) -> None:
        engine.outstanding.add(request)
        self._turn = engine.number + 1


class _Simulation:
    """Three kinds of event: arrivals, ends of transfers, and what the engines do."""

    def __init__(self, arrivals: Sequence[Arrival], profile: Profile, fleet: Fleet) -> None:
        self._results = [Predicted(arrival) for arrival in arrivals]
        self._profile = profile
        self._fleet = fleet
        self._two_phase = fleet.aggregated == 0
        firsts = fleet.prefill if self._two_phase else fleet.aggregated
        self._firsts = self._pool(firsts, fleet.limits)
        self._seconds = self._pool(
            fleet.decode if self._two_phase else 0, fleet.decode_limits or fleet.limits
        )
        self._line: deque[int] = deque()
        self._agenda: list[tuple[float, int, Literal["arrived", "transferred"], int]] = []
        self._order = count()

    def _pool(self, engines: int, limits: EngineLimits) -> _Pool:
        # The line is here or in the engine, but nobody is turned away.
        limits = replace(limits, waiting_max=max(limits.waiting_max, len(self._results)))
        models = [
            EngineModel(self._profile, limits, speed=self._fleet.speed) for _ in range(engines)
        ]
        return _Pool([_Engine(i, model) for i, model in enumerate(models)], self._fleet)

    def run(self) -> list[Predicted]:
        for request, result in enumerate(self._results):
            at_s = result.arrival.at_s + self._fleet.overhead_ms / 1e3
            self._schedule(at_s, "arrived", request)
        engines = [*self._firsts.engines, *self._seconds.engines]
        while True:
            engine_at = [at for e in engines if (at := e.model.next_event_at()) is not None]
            now_s = min(engine_at, default=inf)
            if self._agenda and self._agenda[0][0] < now_s:
                now_s = self._agenda[0][0]
            if now_s == inf:
                break
            for engine in engines:
                for event in engine.model.advance(now_s):
                    self._on_engine(engine, event)
            while self._agenda and self._agenda[0][0] <= now_s:
                _, _, what, request = heappop(self._agenda)
                if what == "arrived":
                    self._line.append(request)
                else:
                    self._transferred(request, now_s)
            self._dispatch(now_s)
        return self._results

    def _schedule(self, at_s: float, what: Literal["arrived", "transferred"], request: int) -> None:
        heappush(self._agenda, (at_s, next(self._order), what, request))

    def _dispatch(self, now_s: float) -> None:
        """Send the first in line off while there are places, on both sides at once."""
        while self._line:
            first = self._firsts.pick()
            second = self._seconds.pick() if self._two_phase else first
            if first is None or second is None:
                return
            request = self._line.popleft()
            self._firsts.take(first, request)
            if self._two_phase:
                self._seconds.take(second, request)
            result = self._results[request]
            result.engine, result.decode_engine = first.number, second.number
            self._submit(first, request, "prefill" if self._two_phase else "aggregated", now_s)

    def _submit(self, engine: _Engine, request: int, kind: RequestKind, now_s: float) -> None:
        arrival = self._results[request].arrival
        engine.model.submit(
            ModelRequest(
                str(request),
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=arrival.output_tokens,
                page_hashes=arrival.page_hashes() if kind != "decode" else (),
                kind=kind,
            ),
            now_s,
        )

    def _on_engine(self, engine: _Engine, event: ModelEvent) -> None:
        match event:
            case Admitted(request_id, _, hit_tokens) if hit_tokens:
                self._results[int(request_id)].hit_tokens = hit_tokens
            case FirstToken(request_id, at_s):
                self._results[int(request_id)].first_token_s = at_s
            case PrefillFinished(request_id, at_s):
                self._schedule(
                    at_s + self._transfer_s(int(request_id)), "transferred", int(request_id)
                )
            case Finished(request_id, at_s, _):
                self._results[int(request_id)].finish_s = at_s
                engine.outstanding.remove(int(request_id))
            case _:
                pass

    def _transferred(self, request: int, now_s: float) -> None:
        """The KV is on the decode engine; the prefill engine forgets the request."""
        result = self._results[request]
        first = self._firsts.engines[result.engine]
        first.model.release(str(request), now_s)
        first.outstanding.remove(request)
        self._submit(self._seconds.engines[result.decode_engine], request, "decode", now_s)

    def _transfer_s(self, request: int) -> float:
        return transfer_s(
            self._results[request].arrival.prompt_tokens,
            self._profile.kv_bytes_per_token,
            self._fleet.bandwidth_gb_per_s,
            self._fleet.transfer_latency_ms,
        )
