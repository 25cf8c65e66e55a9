"""Faults planted in the running product, for the controls of the proofs. Never in the product.

A process whose ``PYTHONPATH`` names this folder imports this file at its start. ``PLANTED_FAULT``
names faults, with commas; a fault's function gets the module it changes, right after that module
was imported.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Fault = Callable[[ModuleType], None]
FAULTS: dict[str, list[tuple[str, Fault]]] = {}


def fault(name: str, module: str) -> Callable[[Fault], Fault]:
    """Register a function that spoils ``module``; one fault may spoil several."""

    def register(function: Fault) -> Fault:
        FAULTS.setdefault(name, []).append((module, function))
        return function

    return register


class _Spoiler(importlib.abc.MetaPathFinder):
    """Runs a fault's function when its module is imported, by whomever."""

    def __init__(self, module: str, function: Fault) -> None:
        self._module = module
        self._function = function

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module
        function = self._function

        def exec_module(module: ModuleType) -> None:
            execute(module)
            function(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _plant() -> None:
    for name in filter(None, os.environ.get("PLANTED_FAULT", "").split(",")):
        if name not in FAULTS:
            sys.exit(f"no such fault: {name}")
        for module, function in FAULTS[name]:
            sys.meta_path.insert(0, _Spoiler(module, function))


@fault("router_hidden_randomness", "components.router.core")
def _router_hidden_randomness(module: ModuleType) -> None:
    import random  # noqa: PLC0415

    place = module.RouterCore._place

    def spoiled(self: object, card: object, shard: str, now_s: float) -> object:
        return place(self, card, shard, now_s + random.random())

    module.RouterCore._place = spoiled


@fault("scheduler_opens_a_socket", "components.scheduler.service")
def _scheduler_opens_a_socket(module: ModuleType) -> None:
    import socket  # noqa: PLC0415

    vars(module)["back_door"] = socket.create_server(("127.0.0.1", 0))


@fault("worker_starts_slowly", "components.worker.main")
def _worker_starts_slowly(module: ModuleType) -> None:
    import time  # noqa: PLC0415

    main = module.main

    def spoiled(overrides: object) -> int:
        time.sleep(20)
        code: int = main(overrides)
        return code

    vars(module)["main"] = spoiled


@fault("usage_is_off_by_one", "components.gateway.openai_responses")
def _usage_is_off_by_one(module: ModuleType) -> None:
    content = module.Usage.content.fget

    def spoiled(self: object) -> dict[str, int]:
        usage: dict[str, int] = content(self)
        return usage | {"completion_tokens": usage["completion_tokens"] + 1}

    module.Usage.content = property(spoiled)


@fault("engine_is_a_quarter_slower", "components.domain.engine_model.model")
def _engine_is_a_quarter_slower(module: ModuleType) -> None:
    build = module.EngineModel.__init__

    def spoiled(self: object, profile: object, limits: object, *, speed: float = 1.0) -> None:
        build(self, profile, limits, speed=speed * 0.8)

    module.EngineModel.__init__ = spoiled


@fault("router_forgets_a_step", "components.router.core")
def _router_forgets_a_step(module: ModuleType) -> None:
    dispatch = module.RouterCore._dispatch

    def spoiled(self: object, card: object, *others: object) -> list[object]:
        outcomes: list[object] = dispatch(self, card, *others)
        return [o for o in outcomes if getattr(o, "step", None) != "routed"]

    module.RouterCore._dispatch = spoiled


@fault("decode_never_recomputes", "components.worker.core")
def _decode_never_recomputes(module: ModuleType) -> None:
    module.WorkerCore._fall_back = lambda self, *ignored: module.Outcomes()


@fault("decode_never_recomputes", "components.gateway.core")
def _nobody_notices(module: ModuleType) -> None:
    # Else the gateway sees an engine that makes no step, and goes on elsewhere.
    module.GatewayCore._on_worker_lost = lambda self, *ignored: None


@fault("gateway_does_not_fence", "components.gateway.core")
def _gateway_does_not_fence(module: ModuleType) -> None:
    take = module.GatewayCore._on_entries

    def spoiled(
        self: object, worker: str, epoch: int, entries: list[list[object]], now_s: float
    ) -> None:
        for entry in entries:
            request = self.requests.get(entry[0])  # type: ignore[attr-defined]
            if request is None or entry[1] >= request.attempt:
                take(self, worker, epoch, [entry], now_s)
            else:
                entry[1] = request.attempt
                take(self, request.worker or worker, epoch, [entry], now_s)

    module.GatewayCore._on_entries = spoiled


@fault("continuation_forgets_what_was_emitted", "components.gateway.core")
def _continuation_forgets_what_was_emitted(module: ModuleType) -> None:
    vars(module)["with_emitted"] = lambda body, emitted: body


@fault("bridge_swaps_two_fields", "components.bridge.core")
def _bridge_swaps_two_fields(module: ModuleType) -> None:
    event = module._event

    def spoiled(*given: object) -> object:
        right = event(*given)
        swapped = {
            "pending_tokens_total": right.kv_cache_free_blocks,
            "kv_cache_free_blocks": right.pending_tokens_total,
        }
        return right.model_copy(update=swapped)

    vars(module)["_event"] = spoiled


@fault("gateway_reads_whole_bodies", "components.gateway.intake")
def _gateway_reads_whole_bodies(module: ModuleType) -> None:
    async def spoiled(self: object, receive: Callable[[], object]) -> bytes:
        pieces = []
        while True:
            message = await receive()  # type: ignore[misc]
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(pieces)

    module.Intake._read = spoiled


@fault("gateway_reads_whole_bodies", "components.gateway.protocol")
def _the_connection_reads_on(module: ModuleType) -> None:
    # A limit that no body reaches.
    too_large = 10**12
    start = module.GatewayProtocol.__init__

    def spoiled(self: object, *given: object, **named: object) -> None:
        start(self, *given, **named)
        limits = self._settings.model_copy(update={"body_bytes_max": too_large})  # type: ignore[attr-defined]
        self._settings = limits  # type: ignore[attr-defined]

    module.GatewayProtocol.__init__ = spoiled


@fault("workers_may_publish_anything", "bus.permissions")
def _workers_may_publish_anything(module: ModuleType) -> None:
    right = module.permissions_for

    def spoiled(component: str, instance: str, **more: str) -> object:
        given = right(component, instance, **more)
        return module.replace(given, publish=(">",)) if component == "worker" else given

    vars(module)["permissions_for"] = spoiled


@fault("kv_is_noise", "components.worker.vllm.connector.blocks")
def _kv_is_noise(module: ModuleType) -> None:
    scatter = module.KvBlocks.scatter

    def spoiled(self: object, ids: Sequence[int], data: object, skip: int = 0) -> None:
        for _, part in self._parts(data, skip + len(ids)):  # type: ignore[attr-defined]
            part.normal_()
        scatter(self, ids, data, skip)

    module.KvBlocks.scatter = spoiled


@fault("links_break_when_told", "components.worker.vllm.connector.gloo")
def _links_break_when_told(module: ModuleType) -> None:
    """Part of a proof: an end that takes a file of the folder ``LINK_FAULTS`` breaks its link."""
    from pathlib import Path  # noqa: PLC0415

    folder = Path(os.environ["LINK_FAULTS"])
    begin, opened = module._GlooLink._begin, module.open_gloo

    def is_told() -> bool:
        for request in folder.iterdir():
            try:
                request.unlink()
            except FileNotFoundError:
                continue
            return True
        return False

    def breaking(self: object, *given: object) -> object:
        if is_told():
            self.close()  # type: ignore[attr-defined]
        return begin(self, *given)

    def failing(board: object, *given: object) -> object:
        if is_told():
            raise module.LinkFailed("told to fail while opening")
        return opened(board, *given)

    module._GlooLink._begin = breaking
    vars(module)["open_gloo"] = failing


@fault("transfers_are_slow", "components.worker.vllm.connector.blocks")
def _transfers_are_slow(module: ModuleType) -> None:
    """Part of a proof: each chunk takes 0.1 s, so that there is time to kill in the middle."""
    import time  # noqa: PLC0415

    gather = module.KvBlocks.gather

    def slow(self: object, *given: object) -> None:
        time.sleep(0.1)
        gather(self, *given)

    module.KvBlocks.gather = slow


@fault("ranks_forget_what_they_hold", "components.worker.vllm.connector.core")
def _ranks_forget_what_they_hold(module: ModuleType) -> None:
    """Neither a release nor the end of a lease frees anything."""
    module.Holdings.release = lambda *_: []
    module.Holdings.on_tick = lambda *_: []


@fault("gateway_ignores_who_leaves", "components.gateway.desk")
def _gateway_ignores_who_leaves(module: ModuleType) -> None:
    module.Desk.close = lambda *_: None
    module.Desk.abandon = lambda *_: None


@fault("gateway_forgets_constraints", "components.gateway.submit")
def _gateway_forgets_constraints(module: ModuleType) -> None:
    encode = module.encode_body

    def spoiled(body: object) -> object:
        sampling = body.sampling.model_copy(update={"structured": None, "parsing": None})  # type: ignore[attr-defined]
        return encode(module.Body(body.prompt_token_ids, sampling, body.emitted))  # type: ignore[attr-defined]

    vars(module)["encode_body"] = spoiled


@fault("http_engine_slips_a_token", "components.worker.openai_http.outputs")
def _http_engine_slips_a_token(module: ModuleType) -> None:
    take = module.Outputs._take_ids

    def spoiled(self: object, key: object, choice: object, piece: object, ids: list[int]) -> bool:
        said: bool = take(self, key, choice, piece, [*ids[:-1], ids[-1] ^ 1] if ids else ids)
        return said

    module.Outputs._take_ids = spoiled


@fault("sglang_rooms_differ", "components.worker.sglang.rooms")
def _sglang_rooms_differ(module: ModuleType) -> None:
    """A room is taken again: what it was for meets what it is for now."""
    module.Rooms.take = lambda self, count: (7,) * count


@fault("explain_reads_everything", "components.replay.answers")
def _explain_reads_everything(module: ModuleType) -> None:
    """The index is not asked: the whole stream is decoded for one request."""
    init = module.Answers.__init__

    def spoiled(self: object, past: object, *_: object) -> None:
        init(self, past)

    module.Answers.__init__ = spoiled
    vars(module)["_of"] = _decoding(module)


def _decoding(module: ModuleType) -> Callable[[str, object], list[object]]:
    def of(request_id: str, stored: object) -> list[object]:
        decoded = module.opened(stored)
        events = getattr(decoded.message, "events", ())
        return [(decoded.source, e) for e in events if e.request_id == request_id]

    return of


@fault("instants_are_looked_for_one_by_one", "components.replay.past")
def _instants_are_looked_for_one_by_one(module: ModuleType) -> None:
    async def place_of(past: object, stream: str, at_ms: int) -> int:
        place = 0
        async for stored in past.read(stream):  # type: ignore[attr-defined]
            if module.time_of(stored) > at_ms:
                break
            place = stored.seq
        return place

    vars(module)["place_of"] = place_of


@fault("bridge_takes_booleans_for_numbers", "components.bridge.datagram")
def _bridge_takes_booleans_for_numbers(module: ModuleType) -> None:
    whole = module._whole

    def spoiled(value: object, least: int, most: int) -> int:
        number: int = whole(int(value) if isinstance(value, bool) else value, least, most)
        return number

    vars(module)["_whole"] = spoiled


@fault("bridge_is_slow", "components.bridge.core")
def _bridge_is_slow(module: ModuleType) -> None:
    import time  # noqa: PLC0415

    take = module.BridgeCore.on_datagram

    def spoiled(self: object, *values: object, **more: object) -> object:
        until_s = time.perf_counter() + 60e-6
        while time.perf_counter() < until_s:
            pass
        return take(self, *values, **more)

    module.BridgeCore.on_datagram = spoiled


@fault("tenants_share_their_inboxes", "bus.permissions")
def _tenants_share_their_inboxes(module: ModuleType) -> None:
    right = module.permissions_for

    def spoiled(component: str, instance: str, **more: str) -> object:
        given = right(component, instance, **more)
        wider = (*given.subscribe, "_INBOX_client.>")
        return module.replace(given, subscribe=wider) if component == "client" else given

    vars(module)["permissions_for"] = spoiled


@fault("auditor_keeps_gaps_to_itself", "components.replay.findings")
def _auditor_keeps_gaps_to_itself(module: ModuleType) -> None:
    module.Findings.found = lambda self, gap: None


@fault("update_forgets_what_was_not_sent", "components.registry.nodes")
def _update_forgets_what_was_not_sent(module: ModuleType) -> None:
    """As the older service did: what is not sent has its default again."""
    update = module.NodeTable.update

    def spoiled(self: object, asked: object, wall_ms: int) -> object:
        put = update(self, asked, wall_ms)
        said = module._said(asked.changes)  # type: ignore[attr-defined]
        node = module.Node(node_id=put.node_id, update_time=wall_ms, **said)
        return module.Put(put.node_id, node, put.expected, put.what)

    module.NodeTable.update = spoiled


_plant()
