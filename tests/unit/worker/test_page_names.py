"""Blocks of vLLM's cache get the names that the gateway gives to the same pages."""

from bus.bus import Received
from bus.memory_bus import MemoryHub
from bus.subjects import ANY, kv_pages_changed, show_pages
from components.domain.outcomes import Ask, Outcome
from components.domain.page_view import PageViews
from components.domain.pages import page_hashes, unpack_hashes
from components.worker.vllm.page_names import PageNames, PagesChange
from components.worker.vllm.page_reports import PageReports
from schemas.engine import KvPagesChanged, ShowPages, ShowPagesReply
from tests.support.host import connected_host
from tests.support.nats import until

TOKENS = tuple(range(1000, 1096))
PAGES = page_hashes(TOKENS, 7)
SALT = [(f"{PAGES[0]:016x}",), None, None]


def test_pages_have_the_same_names_as_at_the_gateway():
    names = PageNames()
    assert names.stored([11, 12], None, TOKENS[:64], 32, SALT) == PagesChange(0, PAGES[:4])
    # What is decoded later follows what was there.
    assert names.stored([13], 12, TOKENS[64:], 32, None) == PagesChange(PAGES[3], PAGES[4:])
    assert names.removed([12, 13, 99]) == PagesChange(removed=PAGES[2:])
    assert len(names) == 1
    assert names.cleared() == PagesChange(cleared=True)
    assert not names


def test_a_block_of_one_page_has_one_name():
    names = PageNames()
    blocks = [1, 2, 3, 4, 5, 6]
    assert names.stored(blocks, None, TOKENS, 16, SALT) == PagesChange(0, PAGES)


def test_what_has_no_salt_or_an_unknown_parent_stays_nameless():
    names = PageNames()
    assert names.stored([1], None, TOKENS[:32], 32, None) is None
    assert (
        names.stored([1], None, TOKENS[:32], 32, [("adapter", ("image", 3), "not sixteen")]) is None
    )
    assert names.stored([1], None, TOKENS[:32], 32, [("sixteen no hex!!",)]) is None
    assert names.stored([2], 1, TOKENS[:32], 32, None) is None
    assert names.removed([1, 2]) is None


async def test_a_reader_can_tell_that_it_missed_a_change():
    async with connected_host("worker", "aggregated-0") as host:
        told: list[KvPagesChanged] = []
        _ = await host.bus.subscribe(
            kv_pages_changed(ANY), KvPagesChanged, lambda received: told.append(received.message)
        )
        reports = PageReports(host)
        reports.say(PagesChange(cleared=True))
        reports.say(PagesChange(5, (6, 7, 8)))
        reports.say(PagesChange(removed=(6,)))
        await until(lambda: len(told) == 3)
        assert [message.first_change for message in told] == [0, 1, 4]
        assert unpack_hashes(told[1].stored) == (6, 7, 8)
        assert unpack_hashes(told[2].removed) == (6,)


async def test_a_reader_that_missed_a_change_asks_and_knows_what_the_cache_holds():
    hub, views = MemoryHub(), PageViews()
    questions: list[Outcome] = []

    def hear(received: Received[KvPagesChanged]) -> None:
        if received.message.first_change != 3:  # that one is lost
            questions.extend(views.on_changed(received.message, 0.0))

    async with (
        connected_host("worker", "aggregated-0", hub=hub) as host,
        connected_host("router", hub=hub) as reader,
    ):
        _ = await reader.bus.subscribe(kv_pages_changed(ANY), KvPagesChanged, hear)
        reports = PageReports(host)
        await reports.listen()
        reports.say(PagesChange(0, (6, 7, 8)))
        reports.say(PagesChange(removed=(6,)))
        reports.say(PagesChange(8, (9,)))
        await until(lambda: any(isinstance(o, Ask) for o in questions))
        [question] = [o for o in questions if isinstance(o, Ask)]
        assert question.message == ShowPages()
        subject = show_pages(*question.to)
        reply = await reader.bus.ask(subject, question.message, ShowPagesReply, timeout_s=2)
        views.on_shown(reply, 0.0)
        assert not views.is_behind("aggregated-0")
        assert views.pages_of("aggregated-0") == {7, 8, 9}
