"""The table of messages: subject, sender, readers. Permissions and documentation come from it.

A subject template reads ``kind.noun.verb[.{scope}...].{id}``; the bus puts its prefix in front.
Kinds: ``evt`` facts, kept by a stream; ``cmd`` for one addressee; ``ask`` a question with a reply;
``sig`` signals, never kept; ``out`` token frames.

``sender_is`` names the token that must be the sender's own instance id, ``reader_is`` the token
that must be the reader's own: a worker may only publish frames under its own name, a gateway only
read those meant for it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from schemas import (
    access,
    attempt,
    body,
    client,
    engine,
    engines,
    fleet,
    handoff,
    history,
    journal,
    keys,
    links,
    nodes,
    past,
    request,
    routing,
)
from schemas.message import Message

#: ``connector`` is one rank of an engine, a process beside its agent: it moves KV and nothing else.
#: ``client`` is anybody outside with a key of a tenant, which is its instance name.
Component = Literal[
    "gateway",
    "scheduler",
    "router",
    "registry",
    "bridge",
    "worker",
    "replay",
    "connector",
    "operator",
    "client",
]

ALL: Final[tuple[Component, ...]] = (
    "gateway",
    "scheduler",
    "router",
    "registry",
    "bridge",
    "worker",
    "replay",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message on one subject. ``reply`` is set for questions.

    ``streams``: a question may be answered by many messages, so whoever reads it may publish to the
    inboxes of clients. What a ``client`` may send is also taken, and answered, as JSON.
    """

    message: type[Message]
    subject: str
    senders: tuple[Component, ...]
    readers: tuple[Component, ...]
    sender_is: str | None = None
    reader_is: str | None = None
    reply: type[Message] | None = None
    streams: bool = False

    @property
    def kind(self) -> str:
        return self.subject.split(".", 1)[0]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of the template's variable tokens, in order."""
        return tuple(t[1:-1] for t in self.subject.split(".") if t.startswith("{"))


CATALOGUE: Final[tuple[Entry, ...]] = (
    # A request comes in, is queued, cancelled, refused, dispatched.
    Entry(
        request.ScheduleRequest,
        "cmd.request.schedule.{scheduler}",
        ("gateway",),
        ("scheduler",),
        reader_is="scheduler",
    ),
    Entry(
        request.CancelRequest,
        "cmd.request.cancel.{scheduler}",
        ("gateway",),
        ("scheduler",),
        reader_is="scheduler",
    ),
    Entry(
        request.RequestQueued,
        "cmd.request.queued.{gateway}",
        ("scheduler",),
        ("gateway",),
        reader_is="gateway",
    ),
    Entry(
        request.RequestRefused,
        "cmd.request.refused.{gateway}",
        ("scheduler", "router", "worker"),
        ("gateway",),
        reader_is="gateway",
    ),
    Entry(
        request.RequestDispatched,
        "cmd.request.dispatched.{gateway}",
        ("router", "scheduler"),
        ("gateway",),
        reader_is="gateway",
    ),
    Entry(
        request.RequestEventsBatched,
        "evt.request.batch.{source}",
        ("gateway", "scheduler", "router", "worker"),
        (),
        sender_is="source",
    ),
    # When and where.
    Entry(
        routing.RouteWindow,
        "ask.window.route.{shard}.{router}",
        ("scheduler",),
        ("router",),
        reader_is="router",
        reply=routing.RouteWindowReply,
    ),
    Entry(
        routing.RoomChanged,
        "sig.room.changed.{shard}",
        ("router",),
        ("scheduler",),
    ),
    # One attempt at a worker.
    Entry(
        attempt.RunAttempt,
        "cmd.attempt.run.{worker}",
        ("router",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        attempt.CancelAttempt,
        "cmd.attempt.cancel.{worker}",
        ("gateway", "router", "scheduler"),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        attempt.AttemptReported,
        "sig.attempt.reported.{shard}.{worker}",
        ("worker",),
        ("scheduler", "router"),
        sender_is="worker",
    ),
    Entry(
        attempt.ResumeStreams,
        "ask.streams.resume.{worker}",
        ("gateway",),
        ("worker",),
        reader_is="worker",
        reply=attempt.ResumeStreamsReply,
    ),
    Entry(
        body.FetchBody,
        "ask.body.fetch.{gateway}",
        ("worker",),
        ("gateway",),
        reader_is="gateway",
        reply=body.FetchBodyReply,
    ),
    Entry(
        body.BodyPublished,
        "evt.body.published.{request}",
        ("gateway",),
        (),
    ),
    # Clients on NATS ask for tokens; any gateway answers.
    Entry(
        client.CompleteChat,
        "ask.chat.complete.{tenant}",
        ("client",),
        ("gateway",),
        sender_is="tenant",
        reply=client.CompleteChatReply,
        streams=True,
    ),
    Entry(
        client.CompleteText,
        "ask.text.complete.{tenant}",
        ("client",),
        ("gateway",),
        sender_is="tenant",
        reply=client.CompleteTextReply,
        streams=True,
    ),
    Entry(
        client.CancelGeneration,
        "ask.generation.cancel.{tenant}",
        ("client",),
        ("gateway",),
        sender_is="tenant",
        reply=client.CancelGenerationReply,
    ),
    Entry(
        client.ExplainGeneration,
        "ask.generation.explain.{tenant}",
        ("client",),
        ("gateway",),
        sender_is="tenant",
        reply=client.ExplainGenerationReply,
    ),
    # P and D hand KV blocks over.
    Entry(
        handoff.OfferHandoff,
        "cmd.handoff.offer.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        handoff.GrantHandoff,
        "cmd.handoff.grant.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        handoff.RenewHandoff,
        "cmd.handoff.renew.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        handoff.ReadyHandoff,
        "cmd.handoff.ready.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        handoff.ConsumeHandoff,
        "cmd.handoff.consume.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    Entry(
        handoff.ReleaseHandoff,
        "cmd.handoff.release.{worker}",
        ("worker",),
        ("worker",),
        reader_is="worker",
    ),
    # Ranks of engines move KV between themselves.
    Entry(
        links.PostLinkKey,
        "cmd.link.post_key.{connector}",
        ("connector",),
        ("connector",),
        reader_is="connector",
    ),
    Entry(
        links.PullKv,
        "ask.kv.pull.{connector}",
        ("connector",),
        ("connector",),
        reader_is="connector",
        reply=links.PullKvReply,
    ),
    Entry(
        links.ReleaseKv,
        "cmd.kv.release.{connector}",
        ("connector", "worker"),
        ("connector",),
        reader_is="connector",
    ),
    Entry(
        links.KvMoved,
        "sig.kv.moved.{worker}",
        ("connector",),
        ("worker",),
        reader_is="worker",
    ),
    # What engines say.
    Entry(
        engine.EngineLoadReported,
        "evt.engine.load_reported.{engine}",
        ("worker",),
        ("router", "registry"),
        sender_is="engine",
    ),
    Entry(
        engine.EngineStatesReceived,
        "evt.engine.states_received.{engine}",
        ("bridge",),
        ("registry",),
    ),
    Entry(
        engine.KvPagesChanged,
        "evt.kv.pages_changed.{engine}",
        ("worker",),
        (),
        sender_is="engine",
    ),
    Entry(
        engine.ShowStates,
        "ask.engine.show_states.{bridge}",
        ("operator", "gateway", "client"),
        ("bridge",),
        reader_is="bridge",
        reply=engine.ShowStatesReply,
    ),
    Entry(
        engine.ShowPages,
        "ask.kv.show_pages.{engine}",
        ("router", "registry", "operator"),
        ("worker",),
        reader_is="engine",
        reply=engine.ShowPagesReply,
    ),
    Entry(
        engine.ControlEngine,
        "ask.engine.control.{engine}",
        ("operator",),
        ("worker",),
        reader_is="engine",
        reply=engine.ControlEngineReply,
    ),
    Entry(
        engines.DescribeEngine,
        "ask.engine.describe.{engine}",
        ("registry", "operator"),
        ("worker",),
        reader_is="engine",
        reply=engines.DescribeEngineReply,
    ),
    # Who is there.
    Entry(
        fleet.HeartbeatSent,
        "sig.heartbeat.sent.{component}.{instance}",
        ALL,
        ("gateway", "scheduler", "router", "registry", "worker", "bridge"),
        sender_is="instance",
    ),
    Entry(
        fleet.FleetJoined,
        "evt.fleet.joined.{instance}",
        ("registry",),
        (),
    ),
    Entry(
        fleet.FleetLeft,
        "evt.fleet.left.{instance}",
        ("registry",),
        (),
    ),
    Entry(
        fleet.FleetRegistered,
        "evt.fleet.registered.{instance}",
        ("bridge",),
        ("registry",),
    ),
    Entry(
        fleet.FleetExpired,
        "evt.fleet.expired.{instance}",
        ("bridge",),
        ("registry",),
    ),
    Entry(
        fleet.ShowFleet,
        "ask.fleet.show",
        ("operator", "gateway", "client"),
        ("registry",),
        reply=fleet.ShowFleetReply,
    ),
    Entry(
        fleet.ShowComponent,
        "ask.component.show.{instance}",
        ("operator", "replay"),
        ALL,
        reply=fleet.ShowComponentReply,
    ),
    Entry(
        fleet.ShowModel,
        "ask.model.show.{model}",
        ("gateway", "operator", "client"),
        ("worker",),
        reply=fleet.ShowModelReply,
    ),
    # The journal.
    Entry(
        journal.JournalAppended,
        "evt.journal.appended.{owner}",
        ("scheduler", "router"),
        (),
        sender_is="owner",
    ),
    Entry(
        journal.JournalSnapshotted,
        "evt.journal.snapshotted.{owner}",
        ("scheduler", "router"),
        (),
        sender_is="owner",
    ),
    # Nodes, and who may change them.
    Entry(
        nodes.NodeChanged,
        "evt.fleet.node_changed.{node}",
        ("registry",),
        ("registry",),
    ),
    Entry(
        nodes.NodeHeard,
        "sig.node.heard.{registry}",
        ("registry",),
        ("registry",),
        sender_is="registry",
    ),
    Entry(
        nodes.RegisterNode,
        "ask.node.register",
        ("gateway", "operator"),
        ("registry",),
        reply=nodes.RegisterNodeReply,
    ),
    Entry(
        nodes.UpdateNode,
        "ask.node.update",
        ("gateway", "operator"),
        ("registry",),
        reply=nodes.UpdateNodeReply,
    ),
    Entry(
        nodes.DeleteNode,
        "ask.node.delete",
        ("gateway", "operator"),
        ("registry",),
        reply=nodes.DeleteNodeReply,
    ),
    Entry(
        nodes.ShowNode,
        "ask.node.show",
        ("gateway", "operator", "client"),
        ("registry",),
        reply=nodes.ShowNodeReply,
    ),
    Entry(
        nodes.ListNodes,
        "ask.node.list",
        ("gateway", "operator", "client"),
        ("registry",),
        reply=nodes.ListNodesReply,
    ),
    # Engines as records.
    Entry(
        engines.EngineChanged,
        "evt.fleet.engine_changed.{engine}",
        ("registry",),
        ("registry",),
    ),
    Entry(
        engines.ShowEngine,
        "ask.engine.show",
        ("operator", "gateway", "client"),
        ("registry",),
        reply=engines.ShowEngineReply,
    ),
    Entry(
        engines.ListEngines,
        "ask.engine.list",
        ("operator", "gateway", "client"),
        ("registry",),
        reply=engines.ListEnginesReply,
    ),
    Entry(
        engines.ForgetEngine,
        "ask.engine.forget",
        ("operator",),
        ("registry",),
        reply=engines.ForgetEngineReply,
    ),
    # Accounts.
    Entry(
        access.Login,
        "ask.session.login",
        ("gateway",),
        ("registry",),
        reply=access.LoginReply,
    ),
    Entry(
        access.RefreshSession,
        "ask.session.refresh",
        ("gateway",),
        ("registry",),
        reply=access.RefreshSessionReply,
    ),
    Entry(
        access.ShowSigningKeys,
        "ask.session.show_keys",
        ("gateway", "operator"),
        ("registry",),
        reply=access.ShowSigningKeysReply,
    ),
    Entry(
        access.RotateSigningKey,
        "ask.session.rotate_key",
        ("operator",),
        ("registry",),
        reply=access.RotateSigningKeyReply,
    ),
    Entry(
        access.PutUser,
        "ask.user.put",
        ("operator",),
        ("registry",),
        reply=access.PutUserReply,
    ),
    # API keys of tenants.
    Entry(
        keys.MakeKey,
        "ask.key.make",
        ("operator",),
        ("registry",),
        reply=keys.MakeKeyReply,
    ),
    Entry(
        keys.RevokeKey,
        "ask.key.revoke",
        ("operator",),
        ("registry",),
        reply=keys.RevokeKeyReply,
    ),
    Entry(
        keys.ListKeys,
        "ask.key.list",
        ("operator",),
        ("registry",),
        reply=keys.ListKeysReply,
    ),
    Entry(
        keys.CheckKey,
        "ask.key.check",
        ("gateway",),
        ("registry",),
        reply=keys.CheckKeyReply,
    ),
    Entry(
        keys.KeyChanged,
        "evt.fleet.key_changed.{key}",
        ("registry",),
        ("gateway", "registry"),
    ),
    # Is the history whole?
    Entry(
        history.HistoryGapFound,
        "evt.fleet.gap_found.{auditor}",
        ("replay",),
        (),
        sender_is="auditor",
    ),
    Entry(
        history.HistoryProbed,
        "sig.history.probed.{stream}.{auditor}",
        ("replay",),
        ("replay",),
        sender_is="auditor",
    ),
    Entry(
        history.HistoryStateChanged,
        "evt.fleet.history_changed.{auditor}",
        ("replay",),
        (),
        sender_is="auditor",
    ),
    Entry(
        history.HistoryTailLost,
        "evt.fleet.tail_lost.{auditor}",
        ("replay",),
        (),
        sender_is="auditor",
    ),
    Entry(
        history.ShowHistory,
        "ask.history.show",
        ("operator", "gateway"),
        ("replay",),
        reply=history.ShowHistoryReply,
    ),
    # The past.
    Entry(
        past.ShowInstant,
        "ask.instant.show",
        ("operator", "gateway"),
        ("replay",),
        reply=past.ShowInstantReply,
    ),
    Entry(
        past.ExplainRequest,
        "ask.request.explain",
        ("operator", "gateway"),
        ("replay",),
        reply=past.ExplainRequestReply,
    ),
    Entry(
        past.ReadPast,
        "ask.past.read",
        ("operator", "gateway"),
        ("replay",),
        reply=past.ReadPastReply,
    ),
    Entry(
        past.ExportPast,
        "ask.past.export",
        ("operator",),
        ("replay",),
        reply=past.ExportPastReply,
    ),
    Entry(
        past.ReplayJournal,
        "ask.journal.replay",
        ("operator", "gateway"),
        ("replay",),
        reply=past.ReplayJournalReply,
    ),
)

#: Token frames have no schema class: ``schemas.frames`` documents the layout.
FRAMES_SUBJECT: Final = "out.{gateway}.{worker}"

BY_MESSAGE: Final[dict[type[Message], Entry]] = {e.message: e for e in CATALOGUE}

#: Every class that travels, questions' replies included, by schema id.
BY_SCHEMA_ID: Final[dict[str, type[Message]]] = {
    m.schema_id: m for e in CATALOGUE for m in (e.message, e.reply) if m is not None
}
