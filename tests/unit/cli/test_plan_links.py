"""`switchyard plan links` counts groups and memory before anybody pays for them."""

import json

import pytest

from components.cli import main
from components.cli.plan_links import BadLayout, advice, plan_links


def test_one_prefill_and_two_decode_of_two_gpus_make_seven_groups():
    plan = plan_links(1, 2, 2)
    assert (plan.instance_groups, plan.pair_links, plan.groups) == (3, 4, 7)


def test_single_gpus_need_no_group_of_their_own():
    plan = plan_links(2, 3, 1)
    assert (plan.instance_groups, plan.groups) == (0, 6)
    assert (plan.prefill_gpu_mb, plan.decode_gpu_mb) == (3 * 52, 2 * 52)


def test_the_sum_over_gpus_is_two_gpus_per_link_and_one_share_per_own_group_and_gpu():
    plan = plan_links(3, 5, 4, channels=16)
    assert plan.total_mb == 100 * (2 * plan.pair_links + 4 * plan.instance_groups)


def test_a_fleet_whose_links_do_not_fit_is_told_what_would():
    plan = plan_links(96, 144, 2, channels=16)
    assert plan.pair_links == 27_648
    assert "at most 80 others" in advice(plan, 8192)
    assert advice(plan_links(1, 1, 1), 8192).startswith("fits")


@pytest.mark.parametrize("layout", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, 4)])
def test_a_layout_that_cannot_be_is_refused(layout):
    with pytest.raises(BadLayout):
        plan_links(*layout)


def test_programs_get_json_and_people_a_table(capsys):
    arguments = ["plan", "links", "--prefill", "1", "--decode", "2", "--tp", "2"]
    assert main.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["groups"], said["fits"]) == (7, True)
    assert main.main(arguments) == 0
    assert "groups" in capsys.readouterr().out


def test_a_bad_layout_on_the_command_line_is_told(capsys):
    assert main.main(["plan", "links", "--prefill", "0", "--decode", "1"]) == 64
    assert "above 0" in capsys.readouterr().err
