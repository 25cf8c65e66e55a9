"""One loss is no outage, and one stream's outage is not another's."""

from components.replay.storing import Storing


def test_a_stream_that_misses_nothing_is_not_probed_however_quiet():
    storing = Storing()
    assert storing.judge("REQUESTS", 0.0, 1000.0) == "stores"


def test_a_stream_in_which_something_arrives_stores():
    storing = Storing(patience_s=1, answer_s=3)
    for now_s in range(10):
        storing.on_read("REQUESTS", now_s)
        assert storing.judge("REQUESTS", float(now_s), now_s + 0.9) == "stores"


def test_a_quiet_stream_whose_probe_comes_back_stores():
    storing = Storing(patience_s=1, answer_s=3)
    assert storing.judge("FLEET", 2.0, 2.0) == "unsure"
    storing.on_read("FLEET", 2.1)
    assert storing.judge("FLEET", 3.0, 3.0) == "stores"
    # The next silence is asked about anew.
    assert storing.judge("FLEET", 6.0, 6.0) == "unsure"
    storing.on_read("FLEET", 6.1)
    assert storing.judge("FLEET", 9.2, 9.2) == "unsure"


def test_a_probe_of_before_counts_no_more_once_nothing_was_missing():
    storing = Storing(patience_s=1, answer_s=3)
    assert storing.judge("FLEET", 2.0, 2.0) == "unsure"
    assert storing.judge("FLEET", 0.0, 3.0) == "stores"
    assert storing.judge("FLEET", 2.0, 9.0) == "unsure"


def test_a_stream_whose_probe_does_not_come_back_is_silent_until_something_does():
    storing = Storing(patience_s=1, answer_s=3)
    storing.on_read("FLEET", 0.0)
    said = [storing.judge("FLEET", now_s, now_s) for now_s in (1.0, 1.5, 4.5, 4.6, 60.0)]
    assert said == ["stores", "unsure", "unsure", "silent", "silent"]
    storing.on_read("FLEET", 61.0)
    assert storing.judge("FLEET", 60.0, 61.5) == "stores"


def test_streams_are_judged_apart():
    storing = Storing(patience_s=1, answer_s=3)
    for now_s in (2.0, 5.1):
        storing.on_read("JOURNAL", now_s)
        verdicts = [storing.judge(name, now_s, now_s) for name in ("REQUESTS", "JOURNAL")]
    assert verdicts == ["silent", "stores"]
