"""What an engine says of itself fits into its record, and its record into a page."""

import math
from typing import Any

import pytest

from bus import codec
from bus.endpoint import PAYLOAD_BYTES_MAX
from bus.streams import BUCKETS
from components.registry.engine_about import ABOUT_BYTES_MAX, fitting
from components.registry.engines import EngineTable
from schemas.engines import ENGINES_PAGE_MAX, EngineAbout, EngineRecord, ListEngines
from schemas.engines import ListEnginesReply as Reply
from schemas.examples import example
from schemas.fleet import HeartbeatSent
from schemas.nodes import Topology

WIDE = "\x01"  # six bytes of JSON
ARGS: dict[str, Any] = {f"argument_{n:02}": WIDE * 256 for n in range(64)}
LARGEST = EngineAbout(
    kind=WIDE * 32,
    version=WIDE * 64,
    capabilities=(WIDE * 64,) * 64,
    topology=Topology(nvlink_peers=("x" * 1000,) * 64),
    engine_args=ARGS,
)


def size(about: EngineAbout) -> int:
    return len(about.model_dump_json().encode())


def test_what_fits_stays_as_it_is():
    about = EngineAbout(kind="vllm", engine_args={"a": 1, "b": 1.0, "c": True, "d": None, "e": "x"})
    assert fitting(about) == about
    assert [type(v) for v in fitting(about).engine_args.values()] == [
        *(int, float, bool, type(None), str)
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", math.nan), ("a", math.inf), ("a", "x" * 257), ("a" * 65, 1)],
)
def test_single_values_that_do_not_fit_are_left_out(name: str, value: Any):
    about = EngineAbout(kind="vllm", engine_args={name: value, "b": 1})
    assert fitting(about).engine_args == {"b": 1}
    able = EngineAbout(capabilities=("x" * 65, "decode"), topology=Topology(network_gbps=math.inf))
    assert fitting(able) == EngineAbout(capabilities=("decode",))


def test_the_last_arguments_go_first_and_the_size_is_bounded():
    about = EngineAbout(kind="vllm", engine_args=dict.fromkeys(ARGS, "x" * 250))
    assert size(about) > 17_000
    cut = fitting(about)
    assert ABOUT_BYTES_MAX - 300 < size(cut) <= ABOUT_BYTES_MAX
    assert list(cut.engine_args) == list(ARGS)[: len(cut.engine_args)]
    assert cut == fitting(cut) == EngineAbout.model_validate_json(cut.model_dump_json())
    assert size(fitting(LARGEST)) <= ABOUT_BYTES_MAX
    assert fitting(LARGEST).kind == LARGEST.kind


def test_the_largest_record_fits_into_the_bucket_and_a_page_of_them_onto_the_bus():
    table = EngineTable()
    for number in range(ENGINES_PAGE_MAX):
        name = f"{number:03}" + WIDE * 253
        fields = {"instance": name, "model": WIDE * 999, "shard": WIDE * 999, "host": WIDE * 999}
        epoch = 2**63 - 1
        beat = example(HeartbeatSent, **fields, process_epoch=epoch, role="aggregated")
        assert table.on_heartbeat(beat, 0.0)
        table.described(name, epoch, LARGEST)
    engines, more = table.page(ListEngines(limit=ENGINES_PAGE_MAX), 1.0)
    assert (len(engines), more) == (ENGINES_PAGE_MAX, False)
    reply = Reply(engines=engines)
    packed = codec.encode(reply, traceparent=None, source="registry-0", epoch=1, seq=1)
    assert max(len(packed), len(reply.model_dump_json().encode())) < PAYLOAD_BYTES_MAX
    (bucket,) = (bucket for bucket in BUCKETS if bucket.name == "engines")
    for known in engines:
        value = known.record.model_dump_json().encode()
        assert len(value) <= 15 * 1024 < bucket.value_bytes_max
        assert EngineRecord.model_validate_json(value) == known.record
