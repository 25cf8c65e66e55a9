"""Every subject as a function; its name is the message's class in snake_case.

Arguments are raw names; they are encoded here, so callers never build a subject by hand. Pass
``ANY`` for a token to get the pattern to subscribe with.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, cast

from bus.names import encode_name
from schemas.message import Message

PREFIX: Final = "yard"
#: Matches any one token of a subject.
ANY: Final = "*"
#: The instance name that every component answers to.
EVERYONE: Final = "all"


def _subject(path: str, *scope: str) -> str:
    tokens = (s if s == ANY else encode_name(s) for s in scope)
    return ".".join((PREFIX, path, *tokens))


# A request comes in, is queued, cancelled, refused, dispatched.


def schedule_request(scheduler: str) -> str:
    return _subject("cmd.request.schedule", scheduler)


def cancel_request(scheduler: str) -> str:
    return _subject("cmd.request.cancel", scheduler)


def request_queued(gateway: str) -> str:
    return _subject("cmd.request.queued", gateway)


def request_refused(gateway: str) -> str:
    return _subject("cmd.request.refused", gateway)


def request_dispatched(gateway: str) -> str:
    return _subject("cmd.request.dispatched", gateway)


def request_events_batched(source: str) -> str:
    return _subject("evt.request.batch", source)


# When and where.


def route_window(shard: str, router: str) -> str:
    return _subject("ask.window.route", shard, router)


def room_changed(shard: str) -> str:
    return _subject("sig.room.changed", shard)


# One attempt at a worker.


def run_attempt(worker: str) -> str:
    return _subject("cmd.attempt.run", worker)


def cancel_attempt(worker: str) -> str:
    return _subject("cmd.attempt.cancel", worker)


def attempt_reported(shard: str, worker: str) -> str:
    return _subject("sig.attempt.reported", shard, worker)


def resume_streams(worker: str) -> str:
    return _subject("ask.streams.resume", worker)


def fetch_body(gateway: str) -> str:
    return _subject("ask.body.fetch", gateway)


def body_published(request: str) -> str:
    return _subject("evt.body.published", request)


# Clients on NATS ask for tokens.


def complete_chat(tenant: str) -> str:
    return _subject("ask.chat.complete", tenant)


def complete_text(tenant: str) -> str:
    return _subject("ask.text.complete", tenant)


def cancel_generation(tenant: str) -> str:
    return _subject("ask.generation.cancel", tenant)


def explain_generation(tenant: str) -> str:
    return _subject("ask.generation.explain", tenant)


def frames(gateway: str, worker: str) -> str:
    """Token frames: the one exception to noun.verb, and no message (``schemas.frames``)."""
    return _subject("out", gateway, worker)


# P and D hand KV blocks over; the addressee is the worker named.


def offer_handoff(worker: str) -> str:
    return _subject("cmd.handoff.offer", worker)


def grant_handoff(worker: str) -> str:
    return _subject("cmd.handoff.grant", worker)


def renew_handoff(worker: str) -> str:
    return _subject("cmd.handoff.renew", worker)


def ready_handoff(worker: str) -> str:
    return _subject("cmd.handoff.ready", worker)


def consume_handoff(worker: str) -> str:
    return _subject("cmd.handoff.consume", worker)


def release_handoff(worker: str) -> str:
    return _subject("cmd.handoff.release", worker)


# Ranks of engines move KV between themselves; ``KvMoved`` goes to the agent.


def post_link_key(connector: str) -> str:
    return _subject("cmd.link.post_key", connector)


def pull_kv(connector: str) -> str:
    return _subject("ask.kv.pull", connector)


def release_kv(connector: str) -> str:
    return _subject("cmd.kv.release", connector)


def kv_moved(worker: str) -> str:
    return _subject("sig.kv.moved", worker)


# What engines say.


def engine_load_reported(engine: str) -> str:
    return _subject("evt.engine.load_reported", engine)


def engine_states_received(engine: str) -> str:
    return _subject("evt.engine.states_received", engine)


def kv_pages_changed(engine: str) -> str:
    return _subject("evt.kv.pages_changed", engine)


def show_states(bridge: str) -> str:
    return _subject("ask.engine.show_states", bridge)


def show_pages(engine: str) -> str:
    return _subject("ask.kv.show_pages", engine)


def control_engine(engine: str) -> str:
    return _subject("ask.engine.control", engine)


def describe_engine(engine: str) -> str:
    return _subject("ask.engine.describe", engine)


# Who is there.


def heartbeat_sent(component: str, instance: str) -> str:
    return _subject("sig.heartbeat.sent", component, instance)


def fleet_joined(instance: str) -> str:
    return _subject("evt.fleet.joined", instance)


def fleet_left(instance: str) -> str:
    return _subject("evt.fleet.left", instance)


def fleet_registered(instance: str) -> str:
    return _subject("evt.fleet.registered", instance)


def fleet_expired(instance: str) -> str:
    return _subject("evt.fleet.expired", instance)


def show_fleet() -> str:
    return _subject("ask.fleet.show")


def show_component(instance: str) -> str:
    return _subject("ask.component.show", instance)


def show_model(model: str) -> str:
    return _subject("ask.model.show", model)


# The journal.


def journal_appended(owner: str) -> str:
    return _subject("evt.journal.appended", owner)


def journal_snapshotted(owner: str) -> str:
    return _subject("evt.journal.snapshotted", owner)


# Nodes, and who may change them.


def node_changed(node: str) -> str:
    return _subject("evt.fleet.node_changed", node)


def node_heard(registry: str) -> str:
    return _subject("sig.node.heard", registry)


def register_node() -> str:
    return _subject("ask.node.register")


def update_node() -> str:
    return _subject("ask.node.update")


def delete_node() -> str:
    return _subject("ask.node.delete")


def show_node() -> str:
    return _subject("ask.node.show")


def list_nodes() -> str:
    return _subject("ask.node.list")


# Engines as records.


def engine_changed(engine: str) -> str:
    return _subject("evt.fleet.engine_changed", engine)


def show_engine() -> str:
    return _subject("ask.engine.show")


def list_engines() -> str:
    return _subject("ask.engine.list")


def forget_engine() -> str:
    return _subject("ask.engine.forget")


# Accounts.


def login() -> str:
    return _subject("ask.session.login")


def refresh_session() -> str:
    return _subject("ask.session.refresh")


def show_signing_keys() -> str:
    return _subject("ask.session.show_keys")


def rotate_signing_key() -> str:
    return _subject("ask.session.rotate_key")


def put_user() -> str:
    return _subject("ask.user.put")


# API keys of tenants.


def make_key() -> str:
    return _subject("ask.key.make")


def revoke_key() -> str:
    return _subject("ask.key.revoke")


def list_keys() -> str:
    return _subject("ask.key.list")


def check_key() -> str:
    return _subject("ask.key.check")


def key_changed(key: str) -> str:
    return _subject("evt.fleet.key_changed", key)


# Is the history whole?


def history_gap_found(auditor: str) -> str:
    return _subject("evt.fleet.gap_found", auditor)


def history_probed(stream: str, auditor: str) -> str:
    return _subject("sig.history.probed", stream, auditor)


def history_state_changed(auditor: str) -> str:
    return _subject("evt.fleet.history_changed", auditor)


def history_tail_lost(auditor: str) -> str:
    return _subject("evt.fleet.tail_lost", auditor)


def show_history() -> str:
    return _subject("ask.history.show")


# The past.


def show_instant() -> str:
    return _subject("ask.instant.show")


def explain_request() -> str:
    return _subject("ask.request.explain")


def read_past() -> str:
    return _subject("ask.past.read")


def export_past() -> str:
    return _subject("ask.past.export")


def replay_journal() -> str:
    return _subject("ask.journal.replay")


# Any of the above, by class.


@cache
def function_of(message: type[Message]) -> Callable[..., str]:
    """The subject function of a message class: its name in snake_case."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", message.__name__).lower()
    return cast("Callable[..., str]", globals()[name])


def subject_of(message: Message, scope: Sequence[str]) -> str:
    """The subject on which ``message`` travels to ``scope``."""
    return function_of(type(message))(*scope)
