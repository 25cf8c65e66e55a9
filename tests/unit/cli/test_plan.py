"""Which processes an `up` runs follows from what was asked for."""

import pytest

from components.cli.plan import STOP_ORDER, BadPlan, Engines, planned

HTTP, UDP = ("127.0.0.1", 8000), ("127.0.0.1", 9999)


@pytest.mark.parametrize(
    ("asked", "engines"),
    [
        ((None, None, None), (1, 1, 0)),
        ((2, None, None), (2, 1, 0)),
        ((None, 4, None), (1, 4, 0)),
        ((None, None, 2), (0, 0, 2)),
        ((1, 1, 1), (1, 1, 1)),
        ((0, 0, 1), (0, 0, 1)),
        ((2, 2, 0), (2, 2, 0)),
    ],
)
def test_engines_are_those_asked_for_and_one_pair_by_default(
    asked: tuple[int | None, ...], engines: tuple[int, int, int]
):
    assert Engines.asked_for(*asked) == Engines(*engines)


@pytest.mark.parametrize("asked", [(0, 0, None), (0, 0, 0), (0, 1, None), (1, 0, 2), (1, None, 1)])
def test_engines_that_cannot_answer_are_refused(asked: tuple[int | None, ...]):
    with pytest.raises(BadPlan):
        Engines.asked_for(*asked)


def test_every_component_runs_and_every_worker_has_a_name_of_its_role():
    processes = planned(Engines(1, 2, 1), http=HTTP, udp=UDP)
    assert {p.component for p in processes} == set(STOP_ORDER)
    workers = [p.instance for p in processes if p.component == "worker"]
    assert workers == ["prefill-0", "decode-0", "decode-1", "aggregated-0"]


def test_a_worker_is_told_its_role_and_what_all_workers_are_told():
    processes = planned(Engines(1, 1, 0), http=HTTP, udp=UDP, worker=("--speed", "2.0"))
    (decode,) = [p for p in processes if p.instance == "decode-0"]
    assert decode.arguments == ("--role", "decode", "--speed", "2.0")
    assert decode.environment == ()


def test_each_worker_sees_the_gpu_that_is_its_own():
    processes = planned(Engines(1, 1, 0), http=HTTP, udp=UDP, devices=(3, 5))
    seen = {p.instance: dict(p.environment).get("CUDA_VISIBLE_DEVICES") for p in processes}
    assert (seen["prefill-0"], seen["decode-0"], seen["router-0"]) == ("3", "5", None)


def test_too_few_gpus_are_refused():
    with pytest.raises(BadPlan, match="2 engines"):
        planned(Engines(1, 1, 0), http=HTTP, udp=UDP, devices=(0,))


def test_the_gateway_is_ended_first_and_whoever_keeps_the_record_last():
    assert (STOP_ORDER[0], STOP_ORDER[-1]) == ("gateway", "replay")
    assert STOP_ORDER.index("router") < STOP_ORDER.index("worker")
