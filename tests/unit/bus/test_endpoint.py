"""The parts that both buses share, below the conformance suite."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.endpoint import Interest, Outbox, matcher
from bus.memory_bus import MemoryBus, MemoryHub

tokens = st.lists(st.sampled_from(["a", "b", "a=2Eb", "x-1"]), min_size=1, max_size=5)


@given(tokens, st.data())
def test_a_pattern_matches_token_by_token(subject: list[str], data: st.DataObject) -> None:
    pattern = [data.draw(st.sampled_from([t, "*", "c"])) for t in subject]
    expected = "c" not in pattern
    assert matcher(".".join(pattern))(".".join(subject)) is expected
    assert not matcher(".".join(pattern))(".".join([*subject, "more"]))
    assert matcher(".".join([*pattern, ">"]))(".".join([*subject, "more", "still"])) is expected
    assert not matcher(".".join([*pattern, ">"]))(".".join(subject))


def test_the_characters_of_a_pattern_mean_themselves() -> None:
    assert not matcher("yard.evt.a+.*")("yard.evt.aa.x")
    assert not matcher("yard.evt.*")("yardXevt.x")


def test_a_message_that_does_not_match_its_subscription_is_foreign() -> None:
    """A stored message arrives under its original subject: it must not reach a command handler."""
    counters: Counter[str] = Counter()
    got: list[str] = []
    interest = Interest(
        "yard.cmd.attempt.run.decode-0",
        None,
        lambda subject, _reply, _data: got.append(subject),
        counters,
        lambda error: pytest.fail(str(error)),
    )
    interest.arrived("yard.evt.engine.load_reported.decode-0", "$JS.ACK.x", b"")
    assert (got, counters["foreign_total"]) == ([], 1)
    interest.arrived("yard.cmd.attempt.run.decode-0", "", b"")
    assert got == ["yard.cmd.attempt.run.decode-0"]


def test_an_outbox_is_bounded_in_messages_and_bytes_but_takes_what_is_empty() -> None:
    outbox = Outbox(messages_max=2, bytes_max=10)
    assert outbox.offer(("a", b"12345678", ""))
    assert not outbox.offer(("a", b"123", "")), "bytes"
    assert outbox.offer(("b", b"12", ""))
    assert not outbox.offer(("a", b"1", "")), "messages"
    assert outbox.offer(("c", b"", ""))
    assert [outbox.drop_first()[0] for _ in range(3)] == ["a", "b", "c"]
    assert outbox.offer(("a", b"1234567890", ""))
    assert outbox.clear() == 1
    assert len(outbox) == 0


@pytest.mark.parametrize("prefix", ["", "a b", "a.", "*", ">", "a..b"])
def test_a_prefix_is_made_of_plain_tokens(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        MemoryBus(MemoryHub(), source="x", epoch=1, prefix=prefix)
