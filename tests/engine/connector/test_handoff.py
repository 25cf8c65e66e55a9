"""Two real engines: what D decodes after a handoff is what one engine alone decodes, or recomputed.

One pair at a time, in the order of this file; the later tests kill and replace engines.
"""

import asyncio
import random
import signal
import time

import pytest
import pytest_asyncio

pytest.importorskip("vllm")

from bus.server import NatsServer
from tests.engine.connector.engines import EngineInTest, client_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

LEASE_MS = 4_000
TOKENS = 24
#: Chunks of one block and more, so that a transfer has several.
SLOW = {"lease_ms": LEASE_MS, "pull_timeout_ms": 6_000, "staging_bytes": 256 << 10}
SLOW_MODULE = "tests.engine.connector.slow"
LENGTHS = (5, 31, 32, 33, 64, 100, 200, 257, 511, 900)


class Yard:
    """A pair of engines, and what one engine alone answers."""

    def __init__(self, url, client, model, folder):
        self.url, self.client, self.model, self.folder = url, client, model, folder
        self.engines = {}
        self.alone = {}
        self.count = 0

    async def start(self, name, **options):
        options = {"connector": {"lease_ms": LEASE_MS, "pull_timeout_ms": 3_000}, **options}
        engine = await EngineInTest.start(
            name, self.model, self.url, self.client, self.folder, **options
        )
        self.engines[name] = engine
        return engine

    @property
    def p(self):
        return self.engines["prefill-0"]

    @property
    def d(self):
        return self.engines["decode-0"]

    def name(self):
        self.count += 1
        return f"req-{self.count}"

    async def reference(self, prompt):
        """One engine's greedy run: P's, whose cache is emptied before the next handoff."""
        key = tuple(prompt)
        if key not in self.alone:
            self.alone[key] = (await self.p.generate(self.name(), prompt, TOKENS))["ids"]
        return self.alone[key]

    async def references(self, prompts):
        found = await asyncio.gather(*(self.reference(p) for p in prompts))
        await self.p.freed_within(10)
        return found

    async def prefill(self, prompt, lease_ms=None):
        name = self.name()
        asked = {"do_remote_decode": 1, "transfer_id": name}
        asked = asked if lease_ms is None else {**asked, "lease_ms": lease_ms}
        return (await self.p.generate(name, prompt, 1, asked))["kv"]

    async def hand_over(self, prompt):
        return await self.d.generate(self.name(), prompt, TOKENS, await self.prefill(prompt))

    async def external_hits(self):
        return (await self.d.stats())["vllm:external_prefix_cache_hits_total"]

    async def all_free(self, deadline_s=LEASE_MS / 1e3 + 1):
        return [await self.p.freed_within(deadline_s), await self.d.freed_within(deadline_s)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    server = NatsServer(folder / "nats")
    url = await server.start()
    client = await client_of(url)
    yard = Yard(url, client, tiny_model, folder)
    try:
        for name in ("prefill-0", "decode-0"):
            await yard.start(name)
        for engine in yard.engines.values():
            await engine.ready()
        yield yard
    finally:
        for engine in yard.engines.values():
            await engine.stop()
        await client.close()
        await server.stop()


def prompts(seed, lengths):
    source = random.Random(seed)
    return [[source.randrange(8, 264) for _ in range(length)] for length in lengths]


async def test_prompts_of_all_lengths_decode_as_on_one_engine_and_all_tokens_are_loaded(yard):
    asked = prompts(1, LENGTHS)
    alone = await yard.references(asked)
    for prompt, expected in zip(asked, alone, strict=True):
        assert (await yard.hand_over(prompt))["ids"] == expected, len(prompt)
    assert await yard.external_hits() == sum(LENGTHS)
    print("freed after", await yard.all_free())


async def test_sixteen_at_a_time_decode_as_on_one_engine(yard):
    lengths = [random.Random(2).randint(5, 900) for _ in range(32)]
    asked = prompts(3, lengths)
    alone = await yard.references(asked)
    before = await yard.external_hits()
    gate = asyncio.Semaphore(16)

    async def one(prompt):
        async with gate:
            return (await yard.hand_over(prompt))["ids"]

    assert await asyncio.gather(*(one(p) for p in asked)) == alone
    assert await yard.external_hits() - before == sum(lengths)
    await yard.all_free()


async def test_a_prefix_that_d_has_is_not_moved_again(yard):
    (base,) = prompts(4, [300])
    asked = [base + tail for tail in prompts(5, [1, 40, 100])]
    alone = await yard.references(asked)
    before = await yard.external_hits()
    assert [(await yard.hand_over(p))["ids"] for p in asked] == alone
    local = 2 * 288  # nine whole blocks, for all but the first
    assert await yard.external_hits() - before == sum(map(len, asked)) - local
    assert [(await yard.hand_over(p))["ids"] for p in asked] == alone, "with both caches warm"
    await yard.all_free()


async def test_what_nobody_pulls_is_free_when_its_lease_ends(yard):
    await yard.all_free()
    for prompt in prompts(6, [100, 500]):
        await yard.prefill(prompt, lease_ms=700)
    assert not await yard.p.is_free()
    assert await yard.p.freed_within(2) < 1.0


async def test_a_transfer_that_is_gone_or_does_not_fit_is_recomputed(yard):
    (prompt,) = prompts(7, [150])
    (expected,) = await yard.references([prompt])
    held = await yard.prefill(prompt)
    for wrong in (
        {"transfer_id": "nobody's"},
        {"epoch": held["epoch"] - 1},
        {"layout": "another"},
        {"ranks": 2},
        {"worker": "nowhere"},
        {"tokens": "many"},
    ):
        answer = await yard.d.generate(yard.name(), prompt, TOKENS, {**held, **wrong})
        assert answer["ids"] == expected, wrong
        await yard.d.freed_within(2)
    await yard.all_free()


async def test_aborts_at_any_moment_leave_nothing_behind(yard):
    source = random.Random(8)
    asked = prompts(9, [source.randint(5, 700) for _ in range(60)])
    gate = asyncio.Semaphore(8)

    async def one(prompt):
        async with gate:
            name = yard.name()
            if source.random() < 0.3:
                await aborted(yard.p, prompt, 1, {"do_remote_decode": 1}, name)
                return
            held = await yard.prefill(prompt)
            await aborted(yard.d, prompt, TOKENS, held, name)

    async def aborted(engine, prompt, tokens, kv, name):
        going = asyncio.create_task(engine.generate(name, prompt, tokens, kv))
        await asyncio.sleep(source.random() * 0.03)
        await yard.client.request(f"test.{engine.name}.abort", name.encode(), timeout=10)
        await going

    await asyncio.gather(*(one(p) for p in asked))
    print("freed after", await yard.all_free())
    again = prompts(10, [90, 400])
    assert [(await yard.hand_over(p))["ids"] for p in again] == await yard.references(again)


async def test_a_frozen_p_costs_the_deadline_and_its_blocks_come_back(yard):
    (prompt,) = prompts(11, [200])
    (expected,) = await yard.references([prompt])
    held = await yard.prefill(prompt)
    yard.p.signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        assert (await yard.d.generate(yard.name(), prompt, TOKENS, held))["ids"] == expected
        took_s = time.monotonic() - began_s
    finally:
        yard.p.signal(signal.SIGCONT)
    print(f"recomputed after {took_s:.2f} s")
    assert took_s < 4
    await yard.all_free()
    assert (await yard.hand_over(prompt))["ids"] == expected


async def test_a_killed_p_is_survived_and_its_successor_serves(yard):
    asked = prompts(12, [5, 33, 200, 511, 900] * 3)
    alone = await yard.references(asked)
    held = [await yard.prefill(p) for p in asked]
    going = [
        asyncio.create_task(yard.d.generate(yard.name(), p, TOKENS, kv))
        for p, kv in zip(asked, held, strict=True)
    ]
    await asyncio.sleep(0.005)  # some have been moved, some are on their way, some wait
    await yard.p.kill()
    began_s = time.monotonic()
    assert [(await one)["ids"] for one in going] == alone
    print(f"all answered {time.monotonic() - began_s:.2f} s after the kill")
    began_s = time.monotonic()
    assert (await yard.d.generate(yard.name(), asked[3], TOKENS, held[3]))["ids"] == alone[3]
    print(f"after the death: {(time.monotonic() - began_s) * 1e3:.0f} ms")
    await yard.d.freed_within(2)
    await (await yard.start("prefill-0", connector=SLOW, module=SLOW_MODULE)).ready()
    before = await yard.external_hits()
    assert (await yard.hand_over(asked[4]))["ids"] == alone[4]
    assert await yard.external_hits() - before == 900
    await yard.all_free()


async def test_an_abort_in_mid_transfer_frees_both_sides_soon(yard):
    """P takes 0.3 s for each of several chunks here."""
    (prompt,) = prompts(20, [900])
    held = await yard.prefill(prompt)
    name = yard.name()
    going = asyncio.create_task(yard.d.generate(name, prompt, TOKENS, held))
    await asyncio.sleep(0.5)
    assert not going.done()
    await yard.client.request("test.decode-0.abort", name.encode(), timeout=10)
    await going
    took_s = await yard.all_free()
    print(f"P free {took_s[0] * 1e3:.0f} ms after the abort")
    assert took_s[0] < 1.5


async def test_a_p_that_is_killed_in_mid_transfer_costs_one_recomputed_prompt(yard):
    (prompt,) = prompts(21, [900])
    (expected,) = await yard.references([prompt])
    held = await yard.prefill(prompt)
    going = asyncio.create_task(yard.d.generate(yard.name(), prompt, TOKENS, held))
    await asyncio.sleep(0.5)
    assert not going.done()
    await yard.p.kill()
    began_s = time.monotonic()
    assert (await going)["ids"] == expected
    took_s = time.monotonic() - began_s
    print(f"answered {took_s * 1e3:.0f} ms after P's death in mid-transfer")
    assert took_s < 2
    await yard.d.freed_within(2)
    await (await yard.start("prefill-0")).ready()
    assert (await yard.hand_over(prompt))["ids"] == expected


async def test_a_killed_d_leaves_nothing_pinned_past_the_lease(yard):
    asked = prompts(13, [300] * 8)
    held = [await yard.prefill(p) for p in asked]
    going = [
        asyncio.create_task(yard.d.generate(yard.name(), p, TOKENS, kv))
        for p, kv in zip(asked, held, strict=True)
    ]
    await asyncio.sleep(0.004)
    await yard.d.kill()
    for one in going:
        one.cancel()
    took_s = await yard.p.freed_within(LEASE_MS / 1e3 + 1)
    print(f"P free {took_s:.2f} s after D's death; the lease is {LEASE_MS / 1e3} s")
    assert took_s < LEASE_MS / 1e3 + 0.5


async def test_with_noise_in_place_of_the_kv_nothing_decodes_the_same(yard):
    """The control: D's answers do come from what it received. It also fails by setting."""
    asked = prompts(14, [33, 64, 100, 200, 511])
    alone = await yard.references(asked)
    module = "tests.engine.connector.noisy"
    await (await yard.start("decode-0", module=module, policy="fail")).ready()
    answers = [(await yard.hand_over(p))["ids"] for p in asked]
    assert all(answer != expected for answer, expected in zip(answers, alone, strict=True))
    held = await yard.prefill(asked[0])
    lost = {**held, "transfer_id": "nobody's"}
    answer = await yard.d.generate(yard.name(), asked[0], TOKENS, lost)
    assert answer["finish"] == "error"
    await yard.all_free()
