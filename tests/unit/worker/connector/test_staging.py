"""What is pulled before its request has blocks: bounded, and first come first served."""

from components.worker.vllm.connector.config import ConnectorConfig
from components.worker.vllm.connector.core import Pulls
from components.worker.vllm.connector.orders import (
    BeginPull,
    BeginStage,
    ForgetStaged,
    NameReceived,
    PullOrder,
)
from components.worker.vllm.connector.staging import Stages

BLOCK_BYTES = 1024


def config(blocks=8, **changes):
    url = "nats://127.0.0.1:1"
    return ConnectorConfig("decode-0", 1, url, host_staging_bytes=blocks * BLOCK_BYTES, **changes)


def order(request="r1", blocks=3):
    return PullOrder(f"t-{request}", request, "prefill-0", 7, 0, tuple(range(blocks)))


def stages(blocks=8, **changes):
    return Stages(config(blocks, **changes), BLOCK_BYTES)


def whole(request="r1", table=None, blocks=3):
    table = stages() if table is None else table
    assert table.order(order(request, blocks)) == [BeginStage(order(request, blocks))]
    assert table.begin(request)
    assert table.on_whole(request) == []
    return table


def test_what_is_staged_takes_memory_until_its_request_has_it():
    table = whole()
    assert table.is_whole("r1")
    assert table.bytes == 3 * BLOCK_BYTES
    assert table.drop("r1") == [ForgetStaged("r1")]
    assert (len(table), table.bytes) == (0, 0)
    assert table.drop("r1") == []


def test_who_finds_no_room_waits_for_it_in_order():
    table = stages(blocks=4)
    assert len(table.order(order("r1"))) == 1
    assert table.order(order("r2")) == []
    assert table.order(order("r3", 1)) == [], "r2 was first, though r3 would fit"
    assert table.on_failed("r1") == [BeginStage(order("r2")), BeginStage(order("r3", 1))]
    assert table.bytes == 4 * BLOCK_BYTES


def test_what_can_never_fit_is_not_taken_and_keeps_nobody_waiting():
    table = stages(blocks=4)
    assert table.order(order("r1", 5)) == []
    assert len(table.order(order("r2"))) == 1
    assert len(table) == 1


def test_the_table_is_bounded_too():
    table = stages(transfers_max=1)
    table.order(order("r1"))
    assert table.order(order("r2")) == []
    assert len(table) == 1


def test_with_no_host_memory_nothing_is_staged():
    assert stages(blocks=0).order(order()) == []


def test_a_request_that_gets_blocks_first_is_pulled_straight_into_them():
    table = stages(blocks=4)
    table.order(order("r1"))
    table.order(order("r2"))
    assert table.on_blocks("r2") == [], "it waited for room"
    assert table.on_blocks("r1") == []
    assert not table.begin("r1")
    assert table.bytes == 0


def test_a_stage_that_runs_goes_on_when_its_request_gets_blocks():
    table = stages()
    table.order(order())
    assert table.begin("r1")
    assert table.on_blocks("r1") == []
    assert table.is_wanted("r1")
    assert not table.is_whole("r1")
    table.on_whole("r1")
    assert table.is_whole("r1")


def test_a_stage_that_is_dropped_while_it_runs_keeps_its_memory_until_its_thread_is_back():
    for back in ("on_whole", "on_failed"):
        table = stages()
        table.order(order())
        table.begin("r1")
        assert table.drop("r1") == []
        assert not table.is_wanted("r1")
        assert table.bytes == 3 * BLOCK_BYTES
        outcomes = getattr(table, back)("r1")
        assert outcomes == ([ForgetStaged("r1")] if back == "on_whole" else [])
        assert table.bytes == 0


def test_memory_that_comes_back_goes_to_whoever_waits():
    table = whole(table=stages(blocks=4))
    table.order(order("r2"))
    assert table.drop("r1") == [ForgetStaged("r1"), BeginStage(order("r2"))]


def staged_pulls():
    pulls = Pulls(config(pull_timeout_ms=2_000), BLOCK_BYTES)
    whole(table=pulls.stages)
    return pulls


def test_a_pull_that_is_over_gives_back_what_was_staged_for_it():
    pulls = staged_pulls()
    (begin,) = pulls.order(order(), 0.0)
    assert isinstance(begin, BeginPull)
    pulls.begin("r1")
    named, forget = pulls.on_done("r1", 3 * BLOCK_BYTES, 0.1)
    assert isinstance(named, NameReceived)
    assert forget == ForgetStaged("r1")


def test_so_does_one_that_is_aborted_that_fails_and_that_waits_too_long():
    ends = {
        "aborted": lambda pulls: pulls.cancel("r1", 0.1),
        "failed": lambda pulls: (
            pulls.begin("r1") and pulls.on_failed("r1", "transfer_failed", "", 0.1)
        ),
        "late": lambda pulls: pulls.on_tick(2.0),
    }
    for how, end in ends.items():
        pulls = staged_pulls()
        pulls.order(order(), 0.0)
        assert ForgetStaged("r1") in end(pulls), how
        assert pulls.stages.bytes == 0, how


def test_an_abort_before_there_were_blocks_names_nothing():
    assert staged_pulls().cancel("r1", 0.1) == [ForgetStaged("r1")]
