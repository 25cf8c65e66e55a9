"""One trace from the first message to the last, and no cost for those who are not sampled."""

import itertools
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from bus import subjects, tracing
from bus.bus import Received
from bus.memory_bus import MemoryBus, MemoryHub
from schemas.body import FetchBody, FetchBodyReply
from schemas.examples import example
from schemas.request import CancelRequest, RequestRefused
from tests.support.nats import until

CANCEL = subjects.cancel_request("scheduler-0")
REFUSED = subjects.request_refused("gateway-0")
FETCH = subjects.fetch_body("gateway-0")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def member(hub: MemoryHub, name: str) -> MemoryBus:
    bus = MemoryBus(hub, source=name, epoch=1)
    await bus.connect()
    return bus


async def run_chain(traceparent: str | None) -> list[str | None]:
    """gateway -> scheduler -> gateway; returns the traceparents that the two handlers saw."""
    hub = MemoryHub()
    gateway, scheduler = await member(hub, "gateway-0"), await member(hub, "scheduler-0")
    seen: list[str | None] = []

    def on_cancel(received: Received[CancelRequest]) -> None:
        seen.append(received.traceparent)
        scheduler.publish(REFUSED, example(RequestRefused), trace=received.traceparent)

    await scheduler.subscribe(CANCEL, CancelRequest, on_cancel, queue="schedulers")
    await gateway.subscribe(REFUSED, RequestRefused, lambda r: seen.append(r.traceparent))
    gateway.publish(CANCEL, example(CancelRequest), trace=traceparent)
    await until(lambda: len(seen) == 2)
    return seen


def ids(span: ReadableSpan) -> tuple[int, int | None]:
    assert span.context is not None
    return span.context.span_id, span.parent.span_id if span.parent else None


async def test_a_chain_of_messages_is_one_trace_with_the_right_parents(
    spans: InMemorySpanExporter,
) -> None:
    with tracing.root_span("chat", tracing.new_trace(sampled=True), {"model": "m"}) as root:
        await run_chain(root)
    finished = {s.name: s for s in spans.get_finished_spans()}
    names = [
        "chat",
        "send cmd.request.cancel.{scheduler}",
        "process cmd.request.cancel.{scheduler}",
        "send cmd.request.refused.{gateway}",
        "process cmd.request.refused.{gateway}",
    ]
    assert set(finished) == set(names)
    chain = [finished[name] for name in names]
    assert {s.context.trace_id for s in chain if s.context} == {
        int(str(tracing.trace_id(root)), 16)
    }
    for parent, child in itertools.pairwise(chain):
        assert ids(child)[1] == ids(parent)[0]
    assert [s.kind for s in chain] == [
        SpanKind.SERVER,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
    ]


async def test_a_span_says_what_the_conventions_ask_for(spans: InMemorySpanExporter) -> None:
    await run_chain(tracing.new_trace(sampled=True))
    found = {s.name: dict(s.attributes or {}) for s in spans.get_finished_spans()}
    processed = found["process cmd.request.cancel.{scheduler}"]
    assert processed.pop("messaging.message.body.size") > 50  # type: ignore[operator]
    assert processed == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": CANCEL,
        "messaging.destination.template": "cmd.request.cancel.{scheduler}",
        "messaging.consumer.group.name": "schedulers",
    }


@pytest.mark.parametrize(
    "traceparent",
    [None, tracing.new_trace(sampled=False), "nonsense", ""],
    ids=["none", "unsampled", "nonsense", "empty"],
)
async def test_an_unsampled_chain_makes_no_span_and_keeps_its_trace(
    spans: InMemorySpanExporter, traceparent: str | None
) -> None:
    with tracing.root_span("chat", traceparent) as root:
        assert await run_chain(root) == [traceparent, traceparent]
    assert spans.get_finished_spans() == ()


async def test_a_question_and_its_answer_are_in_the_trace(spans: InMemorySpanExporter) -> None:
    hub = MemoryHub()
    gateway, worker = await member(hub, "gateway-0"), await member(hub, "decode-0")
    await gateway.subscribe(FETCH, FetchBody, lambda q: gateway.respond(q, example(FetchBodyReply)))
    trace_of_all = tracing.new_trace(sampled=True)
    await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=1.0, trace=trace_of_all)
    found = spans.get_finished_spans()
    assert sorted(s.name for s in found) == [
        "process ask.body.fetch.{gateway}",
        "send ask.body.fetch.{gateway}",
        "send body.fetch_reply.v1",
    ]
    expected = int(str(tracing.trace_id(trace_of_all)), 16)
    assert {s.context.trace_id for s in found if s.context} == {expected}


async def test_a_handler_that_fails_marks_its_span(spans: InMemorySpanExporter) -> None:
    hub = MemoryHub()
    faults: list[BaseException] = []
    scheduler = MemoryBus(hub, source="scheduler-0", epoch=1, on_fault=faults.append)
    await scheduler.connect()
    gateway = await member(hub, "gateway-0")

    def handler(_received: Received[CancelRequest]) -> None:
        raise LookupError("a bug")

    await scheduler.subscribe(CANCEL, CancelRequest, handler)
    gateway.publish(CANCEL, example(CancelRequest), trace=tracing.new_trace(sampled=True))
    await until(lambda: bool(faults))
    (processed,) = [s for s in spans.get_finished_spans() if s.kind is SpanKind.CONSUMER]
    assert not processed.status.is_ok
    assert [e.name for e in processed.events] == ["exception"]


async def test_spans_of_a_handler_hang_below_its_message(spans: InMemorySpanExporter) -> None:
    hub = MemoryHub()
    gateway, scheduler = await member(hub, "gateway-0"), await member(hub, "scheduler-0")
    inside: list[int] = []
    await scheduler.subscribe(
        CANCEL,
        CancelRequest,
        lambda _r: inside.append(trace.get_current_span().get_span_context().span_id),
    )
    gateway.publish(CANCEL, example(CancelRequest), trace=tracing.new_trace(sampled=True))
    await until(lambda: bool(inside))
    (processed,) = [s for s in spans.get_finished_spans() if s.kind is SpanKind.CONSUMER]
    assert inside == [ids(processed)[0]]


async def test_without_a_tracer_a_sampled_trace_passes_through() -> None:
    traceparent = tracing.new_trace(sampled=True)
    assert await run_chain(traceparent) == [traceparent, traceparent]


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02", False),
        ("", False),
        (None, False),
    ],
)
def test_the_sampled_flag_is_the_lowest_bit(traceparent: str | None, sampled: bool) -> None:
    assert tracing.is_sampled(traceparent) is sampled


def test_new_traces_differ_and_parse() -> None:
    one, other = tracing.new_trace(sampled=True), tracing.new_trace(sampled=False)
    assert tracing.trace_id(one) not in {None, tracing.trace_id(other)}
    assert tracing.is_sampled(one)
    assert not tracing.is_sampled(other)
    assert tracing.trace_id("00-xyz") is None
