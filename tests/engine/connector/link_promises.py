"""What every kind of link promises; modules with a fixture `run` import these."""


async def test_a_silent_peer_ends_the_wait_at_the_deadline_and_a_new_link_works(run):
    _, d = await run("silent")
    assert d["error"] == "LinkTimedOut"
    assert 490 < d["ms"] < 2_000


async def test_closing_a_link_wakes_who_waits_on_it(run):
    _, d = await run("closed")
    assert d["error"] == "LinkFailed"
    assert d["ms"] < 900


async def test_links_one_after_the_other_leave_nothing_behind(run):
    for seen in await run("cycles"):
        assert seen["last"] == seen["first"]
        assert seen["boards"] == 0
