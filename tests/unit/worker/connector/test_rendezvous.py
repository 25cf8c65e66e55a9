"""Two ends meet on mirrored boards, and nothing that is posted can pile up."""

import threading
import time

import pytest

from components.worker.vllm.connector import rendezvous
from components.worker.vllm.connector.config import BadConnectorConfig, ConnectorConfig
from components.worker.vllm.connector.link import LinkTimedOut
from components.worker.vllm.connector.rendezvous import Rendezvous, link_name, link_number

LINK = link_name("p", "d", 255, 7)


def meeting():
    """Two rendezvous that deliver to each other at once."""
    ends: dict[str, Rendezvous] = {}

    def send(own):
        return lambda peer, link, key, value: ends[peer].on_posted(link, own, key, value)

    ends.update({name: Rendezvous(name, send(name)) for name in ("p", "d")})
    return ends["p"], ends["d"]


def soon_s():
    return time.monotonic() + 5


def test_names_can_be_read_back():
    assert link_number(LINK) == ("p", "d", 255, 7)
    with pytest.raises(ValueError, match=r".+"):
        link_number("nonsense")


def test_what_one_end_posts_the_other_reads_also_when_it_comes_first():
    p, d = meeting()
    d.board(LINK, "p").post("0/1", b"here")
    assert p.board(LINK, "d").read("0/1", soon_s()) == b"here"


def test_a_reader_waits_for_what_comes_later():
    p, d = meeting()
    got = []
    reader = threading.Thread(target=lambda: got.append(p.board(LINK, "d").read("k", soon_s())))
    reader.start()
    d.board(LINK, "p").post("k", b"late")
    reader.join(5)
    assert got == [b"late"]


def test_nobody_waits_longer_than_his_deadline():
    p, _ = meeting()
    began_s = time.monotonic()
    with pytest.raises(LinkTimedOut):
        p.board(LINK, "d").read("k", began_s + 0.05)
    assert time.monotonic() - began_s < 2


def test_entries_for_links_of_others_or_by_strangers_are_dropped():
    p, _ = meeting()
    assert not p.on_posted(link_name("q", "d", 1, 1), "d", "k", b"")
    assert not p.on_posted(LINK, "stranger", "k", b"")
    assert not p.on_posted("nonsense", "d", "k", b"")
    assert len(p) == 0


def test_boards_that_nobody_takes_down_are_bounded_and_do_not_stay(monkeypatch):
    p, _ = meeting()
    for number in range(2 * rendezvous.BOARDS_MAX):
        p.on_posted(link_name("p", "d", 1, number), "d", "k", b"")
    assert len(p) <= rendezvous.BOARDS_MAX
    monkeypatch.setattr(rendezvous, "UNREAD_TTL_S", -1.0)
    p.on_posted(LINK, "d", "k", b"")
    assert len(p) == 1


def test_one_board_holds_few_entries():
    p, _ = meeting()
    board = p.board(LINK, "d")
    for number in range(2 * rendezvous.KEYS_MAX):
        board.put(str(number), b"")
    assert not board.has(str(rendezvous.KEYS_MAX))


@pytest.mark.parametrize(
    "wrong", [{"lease_ms": 0}, {"link": "rdma"}, {"typo": 1}, {"worker": ""}, {"lease_ms": "1"}]
)
def test_settings_that_do_not_fit_are_refused(wrong):
    good = {"worker": "p", "epoch": 1, "nats_url": "nats://h:1"}
    assert ConnectorConfig.of(good).worker == "p"
    with pytest.raises(BadConnectorConfig):
        ConnectorConfig.of({**good, **wrong})
