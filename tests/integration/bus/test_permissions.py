"""The permissions as a table, asked of the real server: every subject, every role, both ways.

What is expected comes from the catalogue's plain words (senders, readers, sender_is, reader_is) and
not from ``bus.permissions``, which is what is being tested.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeout

from bus import subjects
from bus.nats_bus import NatsBus
from bus.permissions import HISTORY, ROLES, inbox_prefix, permissions_for
from bus.streams import BUCKETS, STREAMS
from bus.subjects import ANY
from schemas.body import FetchBody, FetchBodyReply
from schemas.catalogue import ALL, CATALOGUE, FRAMES_SUBJECT
from schemas.examples import example
from schemas.fleet import HeartbeatSent
from tests.support.nats import NatsInTest, settled, until

OWN = {
    "gateway": "gateway-0",
    "scheduler": "scheduler-0",
    "router": "router-0",
    "registry": "registry-0",
    "bridge": "bridge-0",
    "worker": "decode-0",
    "replay": "replay-0",
    "connector": "decode-0-engine-0",
    "operator": "operator",
    "history": "history",
    "provisioner": "provisioner",
    "client": "acme",
}
#: Nobody of this name has a key.
ELSE = "somebody-else"
REFUSED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
DESTROYING = (
    "$JS.API.STREAM.DELETE.REQUESTS",
    "$JS.API.STREAM.PURGE.REQUESTS",
    "$JS.API.STREAM.MSG.DELETE.REQUESTS",
    "$JS.API.STREAM.MSG.GET.REQUESTS",
    "$JS.API.CONSUMER.CREATE.REQUESTS",
    "$JS.API.CONSUMER.CREATE.REQUESTS.c",
    "$JS.API.CONSUMER.MSG.NEXT.REQUESTS.c",
    "$JS.API.STREAM.DELETE.KV_nodes",
    "$JS.API.STREAM.PURGE.KV_nodes",
    "$JS.API.STREAM.SNAPSHOT.REQUESTS",
    "$SYS.REQ.SERVER.PING",
)


@dataclass(frozen=True)
class Row:
    """One concrete subject and the roles that may publish and subscribe it."""

    subject: str
    publish: frozenset[str]
    subscribe: frozenset[str]


def table_for(role: str) -> list[Row]:
    """All subjects as they concern ``role``: with its own name in each place, and another's."""
    entries = [(e.subject, e.senders, e.readers, e.sender_is, e.reader_is) for e in CATALOGUE]
    entries.append((FRAMES_SUBJECT, ("worker",), ("gateway",), "worker", "gateway"))
    rows = []
    for template, senders, readers, sender_is, reader_is in entries:
        tokens = re.findall(r"{(\w+)}", template)
        for name, component in ((OWN[role], role), (ELSE, role), (OWN[role], ELSE)):
            if component == ELSE and "component" not in tokens:
                continue
            subject = template.format(**{**dict.fromkeys(tokens, name), "component": component})
            own = (name, component) == (OWN[role], role)
            may_say = {role} & set(senders) if own or sender_is is None else set()
            may_hear = {role} & set(readers) if own or reader_is is None else set()
            rows.append(Row(f"yard.{subject}", frozenset(may_say), frozenset(may_hear)))
    return rows


@dataclass
class Probe:
    """A plain client that keeps what the server refused."""

    client: Client
    role: str
    refused: set[tuple[str, str]] = field(default_factory=set)

    async def publish(self, subject: str) -> None:
        await self.client.publish(subject, b"")

    async def subscribe(self, subject: str) -> None:
        subscription = await self.client.subscribe(subject)
        await subscription.unsubscribe(limit=1)

    async def done(self) -> set[tuple[str, str]]:
        """``{("publish" | "subscription", subject in lower case)}``; one round trip."""
        await settled(self.client, OWN[self.role], self.role)
        return self.refused


@pytest.fixture
def probe(nats_server: NatsInTest) -> Callable[[str], Awaitable[Probe]]:
    async def make(role: str) -> Probe:
        refused: set[tuple[str, str]] = set()

        async def on_error(error: Exception) -> None:
            refused.update((kind, subject) for kind, subject in REFUSED.findall(str(error)))

        client = await nats_server.client(role, OWN[role], error_cb=on_error)
        return Probe(client, role, refused)

    return make


@pytest.mark.parametrize("role", ROLES)
async def test_every_subject_is_allowed_or_denied_as_the_catalogue_says(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    rows = table_for(role)
    for row in rows:
        await asked.publish(row.subject)
        await asked.subscribe(row.subject)
    refused = await asked.done()
    wrong = [
        (kind, row.subject)
        for row in rows
        for kind, may in (("publish", row.publish), ("subscription", row.subscribe))
        if ((kind, row.subject.lower()) not in refused) != bool(may)
    ]
    assert wrong == []
    assert len(rows) == 2 * (len(CATALOGUE) + 1) + 1


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_may_destroy_or_make_the_server_deliver(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    for subject in DESTROYING:
        await asked.publish(subject)
    assert await asked.done() == {("publish", s.lower()) for s in DESTROYING}


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_hears_or_fills_the_inbox_of_another(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    foreign = (f"_INBOX_{ELSE}.1", "_INBOX.1")
    for subject in foreign:
        await asked.publish(subject)
        await asked.subscribe(subject)
    for wide in (">", "yard.>", "*.>", "yard.out.>", f"{inbox_prefix(role, OWN[role])}.>"):
        await asked.subscribe(wide)
    kinds = {(k, s.lower()) for k in ("publish", "subscription") for s in foreign}
    wide_ones = {("subscription", s) for s in (">", "yard.>", "*.>", "yard.out.>")}
    assert await asked.done() == kinds | wide_ones


@pytest.mark.parametrize("role", ROLES)
async def test_jetstream_is_for_those_who_need_it(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    may = {
        "provisioner": {
            "$JS.API.STREAM.CREATE.REQUESTS",
            "$JS.API.STREAM.UPDATE.REQUESTS",
            "$JS.API.STREAM.INFO.REQUESTS",
            "$JS.API.STREAM.INFO.KV_nodes",
        },
        "registry": {
            "$JS.API.STREAM.INFO.KV_nodes",
            "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.a",
            "$KV.nodes.a",
            "$KV.keys.a",
        },
        "history": {"$JS.API.DIRECT.GET.REQUESTS", "$JS.API.DIRECT.GET.REQUESTS.yard.x"},
    }
    everything = set[str]().union(*may.values())
    for subject in everything:
        await asked.publish(subject)
    allowed = may.get(role, set())
    assert await asked.done() == {("publish", s.lower()) for s in everything - allowed}


# Clients.


@pytest.mark.parametrize("role", ROLES)
async def test_only_a_gateway_speaks_to_clients_and_only_its_clients_hear_a_tenant(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    own, other = "_INBOX_client.acme.x.1", "_INBOX_client.globex.x.1"
    wide = ("_INBOX_client.>", "_INBOX_client.*.>")
    for subject in (own, other, *wide):
        await asked.subscribe(subject)
    for subject in (own, other):
        await asked.publish(subject)
    deaf = {("subscription", s.lower()) for s in (own, other, *wide)}
    dumb = {("publish", s.lower()) for s in (own, other)}
    allowed: dict[str, set[tuple[str, str]]] = {
        "gateway": dumb,
        "client": {("publish", own.lower()), ("subscription", own.lower())},
    }
    assert await asked.done() == (deaf | dumb) - allowed.get(role, set())


@pytest.mark.parametrize("role", ROLES)
async def test_services_are_looked_for_by_outsiders_and_are_gateways_and_registries(
    role: str, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    asked = await probe(role)
    everyone = {f"$SRV.{verb}" for verb in ("PING", "INFO", "STATS")}
    services = {"gateway": "switchyard", "registry": "switchyard-registry"}
    own = {
        kind: {f"{s}.{of}" for s in everyone for of in (name, f"{name}.{OWN[kind]}")}
        for kind, name in services.items()
    }
    others = {f"{s}.{n}.{ELSE}" for s in everyone for n in services.values()}
    tried = {*everyone, *others, *(subject for mine in own.values() for subject in mine)}
    for subject in sorted(tried):
        await asked.publish(subject)
        await asked.subscribe(subject)
    refused = await asked.done()
    said, heard = (
        {s for s in tried if (verb, s.lower()) not in refused}
        for verb in ("publish", "subscription")
    )
    assert said == (tried if role in {"client", "operator"} else set())
    assert heard == (everyone | own[role] if role in services else set())


def test_no_process_may_take_a_name_whose_inbox_is_that_of_all_clients() -> None:
    with pytest.raises(ValueError, match="clients' inboxes"):
        permissions_for("worker", "client")


# Replies.


async def test_an_answer_may_be_given_once_and_only_to_a_question(
    nats_server: NatsInTest, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    worker = await nats_server.bus("worker", "decode-0")
    answering = await probe("gateway")
    questions: list[Any] = []

    async def on_question(message: Any) -> None:
        questions.append(message)

    await answering.client.subscribe(subjects.fetch_body("gateway-0"), cb=on_question)
    await answering.done()
    asking = asyncio.ensure_future(
        worker.ask(
            subjects.fetch_body("gateway-0"), example(FetchBody), FetchBodyReply, timeout_s=0.3
        )
    )
    await until(lambda: bool(questions))
    reply = questions[0].reply
    await answering.publish(reply)
    await answering.publish(reply)
    await answering.publish(reply + "0")
    assert await answering.done() == {("publish", reply.lower()), ("publish", reply.lower() + "0")}
    with pytest.raises(Exception, match="no answer"):
        await asking


async def test_a_questioner_cannot_make_a_worker_speak_for_it(
    nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
) -> None:
    """The forged reply: a question whose answer is to go to a heartbeat subject."""
    gateway = await nats_bus("gateway", "gateway-0")
    registry = await nats_bus("registry", "registry-0")
    heartbeats: list[Any] = []
    asked: list[Any] = []
    await registry.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, heartbeats.append)

    def answer(question: Any) -> None:
        asked.append(question)
        gateway.respond(question, example(HeartbeatSent))

    await gateway.subscribe(subjects.fetch_body("gateway-0"), FetchBody, answer)
    attacker = await nats_server.client("worker", "decode-0")
    speaker = NatsBus(nats_server.url, source="decode-0", epoch=1)
    captured: list[bytes] = []
    speaker._post = lambda _subject, data, _reply="": captured.append(data)  # type: ignore[method-assign,assignment]
    speaker.publish("yard.x", example(FetchBody))
    forged = subjects.heartbeat_sent("worker", "prefill-0")
    await attacker.publish(subjects.fetch_body("gateway-0"), captured[0], reply=forged)
    await until(lambda: bool(asked))
    await gateway.flush()
    await registry.flush()
    assert heartbeats == []
    assert gateway.counters["refused_replies_total"] == 1


async def test_a_record_cannot_be_delivered_as_a_command(
    nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
) -> None:
    """The confused deputy: the registry has JetStream send a record to a worker's subject."""
    await nats_server.provision()
    decode = await nats_bus("worker", "decode-0")
    heard: list[Any] = []
    await decode.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, heard.append)
    registry = await nats_server.client("registry", "registry-0")
    await registry.publish("$KV.nodes.a", b"whatever the attacker likes")
    await settled(registry, "registry-0")
    forged = subjects.heartbeat_sent("worker", "prefill-0")
    await registry.publish("$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.a", b"", reply=forged)
    await until(lambda: decode.counters["foreign_total"] == 1, "it arrives, and is refused")
    assert heard == []
    assert decode.counters["malformed_total"] == 0, "it was not even looked at"


# Account HISTORY.


async def test_account_history_sees_no_subject_of_control(
    nats_server: NatsInTest, probe: Callable[[str], Awaitable[Probe]]
) -> None:
    await nats_server.provision()
    worker = await nats_server.bus("worker", "decode-0")
    asked = await probe("history")
    got: list[Any] = []

    async def keep(message: Any) -> None:
        got.append(message)

    await asked.client.subscribe("_INBOX_history.>", cb=keep)
    worker.publish(subjects.heartbeat_sent("worker", "decode-0"), example(HeartbeatSent))
    # A stored message cannot be made to arrive in CONTROL: the reply stays in HISTORY.
    await asked.client.publish(
        "$JS.API.DIRECT.GET.FLEET",
        json.dumps({"seq": 1, "batch": 1}).encode(),
        reply=subjects.heartbeat_sent("worker", "decode-0"),
    )
    await worker.flush()
    await asked.done()
    assert all(m.subject == "_INBOX_history.settled" for m in got)
    assert worker.counters["foreign_total"] == 0


async def test_account_history_asks_only_about_streams(nats_server: NatsInTest) -> None:
    await nats_server.provision()
    client = await nats_server.client("history", "history", error_cb=_ignore)
    for name in [s.name for s in STREAMS]:
        answer = await client.request(f"history.stream.info.{name}", b"", timeout=1)
        assert json.loads(answer.data)["config"]["name"] == name
    for bucket in BUCKETS:
        with pytest.raises(NatsTimeout):
            await client.request(f"history.stream.info.{bucket.stream}", b"", timeout=0.05)


async def _ignore(_error: Exception) -> None:
    pass


# Without a server.


def test_one_key_for_all_instances_leaves_the_own_tokens_open_and_nothing_else() -> None:
    for component in ALL:
        one, any_of_them = (permissions_for(component, i) for i in ("x-0", ANY))
        for mine, open_one in zip(
            one.publish + one.subscribe, any_of_them.publish + any_of_them.subscribe, strict=True
        ):
            inbox = f"_INBOX_{component}.>"
            assert open_one == (inbox if mine == "_INBOX_x-0.>" else mine.replace("x-0", ANY))
            assert not open_one.startswith("*")


def test_names_that_users_choose_cannot_widen_a_permission() -> None:
    rights = permissions_for("worker", "*.>")
    assert "_INBOX_=2A=2E=3E.>" in rights.subscribe
    assert not any(">" in s.removesuffix(".>") for s in rights.publish + rights.subscribe)


def test_only_history_lives_in_the_other_account() -> None:
    assert [r for r in ROLES if permissions_for(r, "x").account == HISTORY] == ["history"]


def test_an_unknown_role_has_no_rights() -> None:
    with pytest.raises(ValueError, match="janitor"):
        permissions_for("janitor", "janitor-0")
