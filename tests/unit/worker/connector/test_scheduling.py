"""The scheduler's side pairs blocks and gives every transfer an end."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from components.worker.vllm.connector.config import ConnectorConfig, Held, prefill_params
from components.worker.vllm.connector.scheduling import HandoffScheduling

EPOCH = 100
HELD = Held("t1", "prefill-0", EPOCH, tokens=100, blocks=4, layout="x", ranks=1)


def scheduling(layout="x", ranks=1, worker="decode-0", **settings):
    config = ConnectorConfig(worker, EPOCH, "nats://127.0.0.1:1", **settings)
    return HandoffScheduling(config, block_tokens=32, ranks=ranks, layout=layout)


@dataclass
class FakeRequest:
    """What we read of a vLLM request."""

    num_prompt_tokens: int = 100
    kv_transfer_params: dict[str, Any] | None = field(default_factory=HELD.params)
    request_id: str = "r1"
    status: Any = field(default_factory=lambda: SimpleNamespace(name="FINISHED_LENGTH_CAPPED"))

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens


def for_prefill(tokens=100, **params):
    return FakeRequest(tokens, {**prefill_params("t1"), **params})


def test_all_tokens_that_are_not_here_are_loaded():
    assert scheduling().tokens_to_load(FakeRequest(), 0) == 100
    assert scheduling().tokens_to_load(FakeRequest(), 64) == 36


def test_asking_changes_nothing():
    side, request = scheduling(), FakeRequest()
    assert [side.tokens_to_load(request, 0) for _ in range(3)] == [100, 100, 100]
    assert side.take_orders().pulls == []


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": 1}, {"do_remote_prefill": 0}])
def test_a_request_without_a_source_loads_nothing(params):
    side, request = scheduling(), FakeRequest(kv_transfer_params=params)
    assert side.tokens_to_load(request, 0) == 0
    side.on_blocks(request, (1, 2, 3, 4), 0)
    assert side.on_finished(request, (1,)) == (False, None) or params
    orders = side.take_orders()
    assert orders.pulls == orders.releases == []


@pytest.mark.parametrize("missing", ["transfer_id", "epoch", "layout", "tokens"])
def test_params_that_are_no_offer_of_ours_make_the_prompt_be_computed_here(missing):
    request = FakeRequest(kv_transfer_params={**HELD.params(), missing: None})
    assert scheduling().tokens_to_load(request, 0) == 0


def test_a_partial_prefix_hit_is_filled_from_the_tail():
    side, request = scheduling(), FakeRequest()
    side.on_blocks(request, (50, 51, 52, 53), 36)  # 64 tokens were here
    (order,) = side.take_orders().pulls
    assert (order.first_block, order.blocks) == (2, (52, 53))
    assert (order.transfer_id, order.source, order.epoch) == ("t1", "prefill-0", EPOCH)


def test_the_second_call_after_the_load_and_a_retry_order_nothing():
    side, request = scheduling(), FakeRequest()
    side.on_blocks(request, (50, 51, 52, 53), 100)
    side.take_orders()
    side.on_blocks(request, (50, 51, 52, 53), 0)
    assert side.tokens_to_load(request, 0) == 0
    orders = side.take_orders()
    assert (orders.pulls, orders.releases) == ([], [])


def test_a_longer_request_than_the_prompt_that_was_computed_loads_whole_blocks():
    side, request = scheduling(), FakeRequest(num_prompt_tokens=130)
    assert side.tokens_to_load(request, 0) == 96
    side.on_blocks(request, (50, 51, 52, 53, 54), 96)
    (order,) = side.take_orders().pulls
    assert (order.first_block, order.blocks) == (0, (50, 51, 52))


def test_when_all_of_it_is_here_the_holder_is_released_and_nothing_ordered():
    side, request = scheduling(), FakeRequest()
    side.on_blocks(request, (), 0)
    orders = side.take_orders()
    assert orders.pulls == []
    assert [r.transfer_id for r in orders.releases] == ["t1"]


def test_other_ranks_or_another_layout_are_refused_in_words():
    side, request = scheduling(ranks=2), FakeRequest()
    side.on_blocks(request, (1, 2, 3, 4), 100)
    assert "1 ranks" in side.take_orders().pulls[0].refused
    side, request = scheduling(layout="y"), FakeRequest()
    side.on_blocks(request, (1, 2, 3, 4), 100)
    assert "another kind" in side.take_orders().pulls[0].refused


def test_an_abort_before_blocks_were_there_releases_the_holder():
    side, request = scheduling(), FakeRequest()
    assert side.on_finished(request, ()) == (False, None)
    assert [r.reason for r in side.take_orders().releases] == ["cancelled"]
    assert side.take_orders().releases == []


def test_an_abort_while_it_loads_is_a_cancel_and_never_a_pin():
    side, request = scheduling(), FakeRequest()
    side.on_blocks(request, (1, 2, 3, 4), 100)
    assert side.on_finished(request, (1, 2, 3, 4)) == (False, None)
    assert side.take_orders().cancels == ["r1"]
    side.on_received(["r1"])
    assert side.on_finished(request, (1, 2, 3, 4)) == (False, None)
    assert side.take_orders().cancels == []


@pytest.mark.parametrize("status", ["FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED"])
def test_a_finished_prompt_is_pinned_without_the_block_of_its_by_product(status):
    side, request = scheduling(worker="prefill-0"), for_prefill(64, lease_ms=3_000)
    request.status = SimpleNamespace(name=status)
    kept, params = side.on_finished(request, (9, 8, 7))
    assert kept
    assert Held.of(params) == Held("t1", "prefill-0", EPOCH, 64, 2, "x", 1)
    (pin,) = side.take_orders().pins
    assert (pin.blocks, pin.lease_ms, pin.request_id) == ((9, 8), 3_000, "r1")


@pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR"])
def test_a_prompt_that_was_not_finished_is_not_pinned(status):
    side, request = scheduling(), for_prefill()
    request.status = SimpleNamespace(name=status)
    assert side.on_finished(request, (1, 2, 3, 4)) == (False, None)
    assert side.take_orders().pins == []


def test_a_prompt_whose_blocks_are_incomplete_is_not_pinned():
    assert scheduling().on_finished(for_prefill(), (1, 2, 3)) == (False, None)


def test_transfers_that_nobody_names_get_names_of_their_own():
    side, names = scheduling(), []
    for n in range(2):
        request = FakeRequest(kv_transfer_params={"do_remote_decode": True}, request_id=f"r{n}")
        names.append(side.on_finished(request, (1, 2, 3, 4))[1]["transfer_id"])
    assert names[0] != names[1]
    assert names[0].startswith("decode-0.")


def test_a_request_that_a_step_passes_over_is_staged_whole_and_once():
    side, request = scheduling(), FakeRequest()
    side.on_new(request)
    (order,) = side.take_orders().stages
    assert (order.first_block, order.blocks) == (0, (0, 1, 2, 3))
    assert (order.transfer_id, order.request_id) == ("t1", "r1")
    assert side.take_orders().stages == []
    side.on_blocks(request, (50, 51, 52, 53), 36)
    orders = side.take_orders()
    assert [o.blocks for o in orders.pulls] == [(52, 53)], "two blocks were found here meanwhile"
    assert orders.cancels == []


def test_a_request_that_gets_blocks_in_its_first_step_is_not_staged():
    side, request = scheduling(), FakeRequest()
    side.on_new(request)
    side.on_blocks(request, (50, 51, 52, 53), 100)
    orders = side.take_orders()
    assert (len(orders.pulls), orders.stages) == (1, [])


def test_a_staged_request_that_is_aborted_or_finds_all_of_it_here_is_unstaged():
    for end in (
        lambda side, request: side.on_finished(request, ()),
        lambda side, request: side.on_blocks(request, (), 0),
    ):
        side, request = scheduling(), FakeRequest()
        side.on_new(request)
        side.take_orders()
        end(side, request)
        orders = side.take_orders()
        assert orders.cancels == ["r1"]
        assert len(orders.releases) == 1


def test_a_request_that_is_aborted_before_any_step_leaves_no_order():
    side, request = scheduling(), FakeRequest()
    side.on_new(request)
    side.on_finished(request, ())
    orders = side.take_orders()
    assert (orders.stages, orders.cancels) == ([], [])


@pytest.mark.parametrize(
    ("changes", "params"),
    [({}, None), ({"layout": "y"}, HELD.params()), ({"host_staging_bytes": 0}, HELD.params())],
)
def test_what_cannot_be_pulled_or_may_not_be_staged_is_not(changes, params):
    side, request = scheduling(**changes), FakeRequest(kv_transfer_params=params)
    side.on_new(request)
    assert side.take_orders().stages == []
