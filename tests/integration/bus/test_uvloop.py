"""The bus on the event loop that processes run on: what it makes of a connection that is gone."""

import asyncio
from typing import Any

import uvloop

from bus import subjects
from schemas.examples import example
from schemas.request import CancelRequest
from tests.support.nats import KeyRing, ServerUnderTest, running, until

CANCEL = subjects.cancel_request("scheduler-0")


async def closed_under(client: Any) -> None:
    """Return when the connection is closed, and nats-py will hear of it next."""
    client._flusher_task.cancel()
    await until(client._flusher_task.done)
    transport = client._transport._io_writer.transport
    transport.abort()
    while not _is_closed(transport):  # noqa: ASYNC110  (a turn of the loop, not later)
        await asyncio.sleep(0)
    assert client.is_connected


def _is_closed(transport: asyncio.WriteTransport) -> bool:
    try:
        transport.write(b"")
    except RuntimeError:  # what uvloop says to whoever writes then
        return True
    return False


def test_what_is_said_to_a_closed_connection_ends_nobody(
    nats_process: ServerUnderTest, nats_keys: KeyRing
) -> None:
    faults: list[BaseException] = []
    heard: list[str] = []

    async def scene() -> None:
        async with running(nats_process, nats_keys) as nats:
            gateway = await nats.bus("gateway", "gateway-0", on_fault=faults.append)
            scheduler = await nats.bus("scheduler", "scheduler-0")
            await scheduler.subscribe(
                CANCEL, CancelRequest, lambda r: heard.append(r.message.request_id)
            )
            await closed_under(gateway._client)
            gateway.publish(CANCEL, example(CancelRequest, request_id="at once"))
            await gateway._send_first()  # the sender's own turn would be one too late
            gateway.publish(CANCEL, example(CancelRequest, request_id="later"))
            await until(lambda: heard == ["at once", "later"], "heard")
            assert gateway.counters["dropped_total"] == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())
    assert faults == []
