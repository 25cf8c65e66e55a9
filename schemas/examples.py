"""One ready, believable instance of each message, for tests, documentation and other teams.

A test says only what is special about its case: ``example(RunAttempt, phase="prefill")``.
"""

from typing import Any, Final, TypeVar

from schemas.access import (
    Login,
    LoginReply,
    PutUser,
    PutUserReply,
    RefreshSession,
    RefreshSessionReply,
    RotateSigningKey,
    RotateSigningKeyReply,
    ShowSigningKeys,
    ShowSigningKeysReply,
    SigningKey,
)
from schemas.attempt import (
    AttemptReported,
    CancelAttempt,
    ResumeStreams,
    ResumeStreamsReply,
    RunAttempt,
    StreamPosition,
)
from schemas.body import BodyPublished, FetchBody, FetchBodyReply
from schemas.client import (
    CancelGeneration,
    CancelGenerationReply,
    CompleteChat,
    CompleteChatReply,
    CompleteText,
    CompleteTextReply,
    ExplainGeneration,
    ExplainGenerationReply,
)
from schemas.engine import (
    Admitted,
    ControlEngine,
    ControlEngineReply,
    EngineLoadReported,
    EngineStateReceived,
    EngineStateSeen,
    EngineStatesReceived,
    KvPagesChanged,
    ShowPages,
    ShowPagesReply,
    ShowStates,
    ShowStatesReply,
)
from schemas.engines import (
    DescribeEngine,
    DescribeEngineReply,
    EngineAbout,
    EngineChanged,
    EngineRecord,
    ForgetEngine,
    ForgetEngineReply,
    KnownEngine,
    ListEngines,
    ListEnginesReply,
    ShowEngine,
    ShowEngineReply,
)
from schemas.fleet import (
    EngineEntry,
    FleetEntry,
    FleetExpired,
    FleetJoined,
    FleetLeft,
    FleetRegistered,
    HeartbeatSent,
    ModelCard,
    ShowComponent,
    ShowComponentReply,
    ShowFleet,
    ShowFleetReply,
    ShowModel,
    ShowModelReply,
)
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
    RenewHandoff,
)
from schemas.history import (
    HistoryGapFound,
    HistoryProbed,
    HistoryStateChanged,
    HistoryTailLost,
    ShowHistory,
    ShowHistoryReply,
    StreamNow,
)
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.keys import (
    ApiKey,
    CheckKey,
    CheckKeyReply,
    KeyChanged,
    ListKeys,
    ListKeysReply,
    MakeKey,
    MakeKeyReply,
    RevokeKey,
    RevokeKeyReply,
)
from schemas.links import KvMoved, PostLinkKey, PullKv, PullKvReply, ReleaseKv
from schemas.message import Message
from schemas.nodes import (
    Caller,
    DeleteNode,
    DeleteNodeReply,
    ListNodes,
    ListNodesReply,
    Node,
    NodeChanged,
    NodeChanges,
    NodeHeard,
    RegisterNode,
    RegisterNodeReply,
    ShowNode,
    ShowNodeReply,
    UpdateNode,
    UpdateNodeReply,
)
from schemas.past import (
    Choice,
    ConsideredCandidate,
    CoreThen,
    Difference,
    ExplainRequest,
    ExplainRequestReply,
    ExportPast,
    ExportPastReply,
    Happened,
    LifeReplayed,
    PlacedThen,
    ProcessThen,
    ReadPast,
    ReadPastReply,
    ReplayJournal,
    ReplayJournalReply,
    ShowInstant,
    ShowInstantReply,
    StepThen,
    WaitingThen,
)
from schemas.request import (
    CancelRequest,
    RequestCard,
    RequestDispatched,
    RequestEvent,
    RequestEventsBatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)
from schemas.routing import (
    CandidateCost,
    CardWaits,
    Plan,
    RoomChanged,
    RouteWindow,
    RouteWindowReply,
)

M = TypeVar("M", bound=Message)

TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

CARD: Final = RequestCard(
    request_id="req-7f3a",
    attempt=1,
    gateway="gateway-0",
    model="sim/words",
    tenant="default",
    budget_ms=600_000,
    prompt_tokens=33,
    output_tokens_max=128,
    body_bytes=160,
    page_hashes=bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
    traceparent=TRACEPARENT,
)

PLAN: Final = Plan(
    request_id="req-7f3a",
    attempt=1,
    worker="decode-0",
    worker_epoch=1_795_000_000_500,
    prefill_worker="prefill-0",
    prefill_epoch=1_795_000_000_400,
    transfer_id="req-7f3a.1",
    candidates=(
        CandidateCost(
            worker="prefill-0", chosen=True, load=1, room=7, state_seq=41, state_age_ms=60
        ),
        CandidateCost(
            worker="decode-0", chosen=True, load=9, room=55, state_seq=44, state_age_ms=35
        ),
    ),
)

LOAD: Final = EngineLoadReported(
    engine="decode-0",
    engine_epoch=1_795_000_000_500,
    role="decode",
    model="sim/words",
    shard="sim/words",
    running=9,
    waiting=0,
    seqs_max=64,
    queued_tokens=0,
    kv_pages_used=812,
    kv_pages_total=25_000,
    watermark=4_410,
    admitted=(Admitted(router="router-0", router_epoch=1, dispatch_seq=57),),
    router_epoch_max=1,
    predicted_step_ms=8.9,
    capacity_tokens_per_s=7_190.0,
)

STATE: Final = EngineStateReceived(
    engine_id="http://10.0.0.7:8000",
    timestamp_ms=1_795_000_012_000,
    latency_pred_ms=12.5,
    scheduling_mode="latency_optimized",
    pending_tokens_total=384,
    kv_cache_free_blocks=-1,
    kv_cache_total_blocks=-1,
    engine_capacity=59_768.0,
    received_ms=1_795_000_012_006,
    source_address="127.0.0.1:51234",
)

HEARTBEAT: Final = HeartbeatSent(
    component="worker",
    instance="decode-0",
    process_epoch=1_795_000_000_500,
    state="ready",
    since_ms=1_795_000_001_100,
    pid=4242,
    host="yard-1",
    role="decode",
    model="sim/words",
    shard="sim/words",
    watermark=4_410,
    running=9,
)

MODEL_CARD: Final = ModelCard(model="sim/words", created_s=1_795_000_000, context_tokens_max=32_768)

CALLER: Final = Caller(name="admin", roles=("admin",))

ENGINE: Final = EngineRecord(
    engine="decode-0",
    process_epoch=1_795_000_000_500,
    state="READY",
    role="decode",
    model="sim/words",
    shard="sim/words",
    host="yard-1",
    about=EngineAbout(
        kind="sim",
        version="0.1.0",
        capabilities=("aggregated", "decode", "prefill"),
        engine_args={"profile": "llama3-8b/tp1/h100", "speed": 1.0},
    ),
    about_epoch=1_795_000_000_500,
    created_ms=1_795_000_001_000,
    updated_ms=1_795_000_002_000,
    revision=12,
)
NODE: Final = Node(
    node_id="node-1",
    node_address="10.0.0.7",
    node_status="online",
    create_time=1_795_000_000_000,
    update_time=1_795_000_000_000,
    revision=7,
)

SIGNING_KEY: Final = SigningKey(kid="8a5edab282632443", public=bytes(range(32)))

GAP: Final = HistoryGapFound(
    stream="REQUESTS",
    source="gateway-0",
    epoch=1_795_000_000_400,
    event="request.batch.v1",
    first_seq=812,
    last_seq=815,
    at_ms=1_795_000_030_000,
)

API_KEY: Final = ApiKey(
    key_id="5f0c2a9e11d4",
    tenant="acme",
    name="batch jobs",
    created_ms=1_795_000_000_000,
    expires_ms=1_802_776_000_000,
    revision=7,
)
#: SHA-256 of "secret".
KEY_DIGEST: Final = bytes.fromhex(
    "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
)

TAIL: Final = HistoryTailLost(
    auditor="replay-0",
    source="decode-0",
    epoch=1_795_000_000_500,
    since_ms=1_795_000_027_500,
    at_ms=1_795_000_050_000,
)

_ALL: Final[tuple[Message, ...]] = (
    ScheduleRequest(card=CARD, body=b"\x94\x01\xc4\x00\x90\x80"),
    CancelRequest(request_id="req-7f3a"),
    RequestQueued(request_id="req-7f3a", attempt=1, scheduler="scheduler-0", place=3),
    RequestRefused(
        request_id="req-7f3a",
        attempt=1,
        code="queue_full",
        detail="the queue holds 10000 requests",
        retry_after_ms=1000,
    ),
    RequestDispatched(
        request_id="req-7f3a",
        attempt=1,
        worker="decode-0",
        worker_epoch=1_795_000_000_500,
        prefill_worker="prefill-0",
        router="router-0",
        router_epoch=1,
    ),
    RequestEventsBatched(
        events=(
            RequestEvent(
                request_id="req-7f3a",
                step="accepted",
                attempt=1,
                at_ms=1_795_000_012_003,
                seq=1,
                traceparent=TRACEPARENT,
                detail={"prompt_tokens": 33, "model": "sim/words"},
            ),
        )
    ),
    RouteWindow(
        shard="sim/words", scheduler="scheduler-0", window=18, cards=(CARD,), bodies=(None,)
    ),
    RouteWindowReply(
        shard="sim/words",
        window=18,
        router="router-0",
        router_epoch=1,
        plans=(PLAN,),
        waits=(CardWaits(request_id="req-80aa", reason="no_decode_room"),),
    ),
    RoomChanged(shard="sim/words", router="router-0", room=4),
    RunAttempt(
        card=CARD,
        phase="decode",
        worker_epoch=1_795_000_000_500,
        router="router-0",
        router_epoch=1,
        dispatch_seq=58,
        transfer_id="req-7f3a.1",
        peer="prefill-0",
        peer_epoch=1_795_000_000_400,
    ),
    CancelAttempt(request_id="req-7f3a", attempt=1),
    AttemptReported(
        request_id="req-7f3a",
        attempt=1,
        worker="decode-0",
        worker_epoch=1_795_000_000_500,
        phase="decode",
        state="accepted",
        router="router-0",
        router_epoch=1,
        dispatch_seq=58,
    ),
    ResumeStreams(
        positions=(StreamPosition(request_id="req-7f3a", attempt=1, choice=0, next_index=17),)
    ),
    ResumeStreamsReply(entries=b"\x90"),
    FetchBody(request_id="req-7f3a", attempt=1),
    FetchBodyReply(request_id="req-7f3a", body=b"\x94\x01\xc4\x00\x90\x80"),
    BodyPublished(request_id="req-7f3a", body=b"\x94\x01\xc4\x00\x90\x80"),
    OfferHandoff(
        transfer_id="req-7f3a.1",
        request_id="req-7f3a",
        attempt=1,
        sender="prefill-0",
        sender_epoch=1_795_000_000_400,
        tokens=33,
        pages=3,
        bytes_total=4_325_376,
        lease_ms=10_000,
    ),
    GrantHandoff(
        transfer_id="req-7f3a.1", sender="decode-0", sender_epoch=1_795_000_000_500, pages=3
    ),
    RenewHandoff(transfer_id="req-7f3a.1", sender="decode-0"),
    ReadyHandoff(
        transfer_id="req-7f3a.1",
        sender="prefill-0",
        sender_epoch=1_795_000_000_400,
        bytes_moved=4_325_376,
    ),
    ConsumeHandoff(transfer_id="req-7f3a.1", sender="decode-0"),
    ReleaseHandoff(transfer_id="req-7f3a.1", sender="decode-0", reason="cancelled"),
    PostLinkKey(
        link="prefill-0-engine-0 decode-0-engine-0 19f8e2a3c1f4 1",
        sender="decode-0-engine-0",
        key="0/1",
        value=b"\x7f\x00\x00\x01",
    ),
    PullKv(
        transfer_id="req-7f3a.1",
        sender="decode-0-engine-0",
        sender_epoch=1_795_000_000_500,
        epoch=1_795_000_000_400,
        link="prefill-0-engine-0 decode-0-engine-0 19f8e2a3c1f4 1",
        first_block=0,
        blocks=2,
        block_bytes=2_097_152,
        chunk_blocks=16,
    ),
    PullKvReply(transfer_id="req-7f3a.1", chunk_blocks=16),
    ReleaseKv(transfer_id="req-7f3a.1", epoch=1_795_000_000_400, reason="cancelled"),
    KvMoved(
        transfer_id="req-7f3a.1",
        side="received",
        reason="consumed",
        rank=0,
        ranks=1,
        bytes_moved=4_194_304,
        ms=1.9,
    ),
    LOAD,
    EngineStatesReceived(engine_id=STATE.engine_id, states=(STATE,)),
    KvPagesChanged(
        engine="prefill-0",
        engine_epoch=1_795_000_000_400,
        first_change=12,
        stored=bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
    ),
    ShowPages(),
    ShowPagesReply(
        engine="prefill-0",
        engine_epoch=1_795_000_000_400,
        change=14,
        total=2,
        offset=0,
        pages=bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
        parents=bytes.fromhex("00000000000000000f1e2d3c4b5a6978"),
    ),
    ControlEngine(action="set_role", role="decode"),
    ControlEngineReply(
        engine="prefill-0", done=True, role="decode", activity="running", accepting=True
    ),
    HEARTBEAT,
    FleetJoined(
        component="worker",
        instance="decode-0",
        process_epoch=1_795_000_000_500,
        host="yard-1",
        pid=4242,
        role="decode",
        model="sim/words",
    ),
    FleetLeft(
        component="worker",
        instance="decode-0",
        process_epoch=1_795_000_000_500,
        lost=True,
        silent_ms=2_000,
    ),
    FleetRegistered(
        instance="10.0.0.5:20003",
        role="prefill",
        http_address="10.0.0.5:20003",
        kv_address="10.0.0.5:21001",
        ttl_ms=10_000,
    ),
    FleetExpired(instance="10.0.0.5:20003", role="prefill", silent_ms=10_250),
    ShowStates(engine_id=STATE.engine_id, history=100),
    ShowStatesReply(
        engines=(EngineStateSeen(state=STATE, age_ms=180, stale=False, kept=1, clock_ahead_ms=-6),),
        history=(STATE,),
        totals={"received_total": 1, "valid_total": 1},
        levels={"active_engines": 1, "total_engines": 1},
        valid_rate="100.00%",
    ),
    ShowFleet(),
    ShowFleetReply(
        processes=(FleetEntry(heartbeat=HEARTBEAT, silent_ms=120, lost=False),),
        engines=(EngineEntry(engine="decode-0", age_ms=80, stale=False, load=LOAD),),
    ),
    ShowComponent(),
    ShowComponentReply(
        heartbeat=HEARTBEAT,
        counters={"bus_published_total": 311},
        published={"engine.load_reported.v1": 41},
    ),
    NodeChanged(
        node_id="node-1", what="registered", by="admin", revision=7, at_ms=1_795_000_000_000
    ),
    NodeHeard(node_id="node-1"),
    RegisterNode(
        caller=CALLER,
        node_id="node-1",
        changes=NodeChanges(node_address="10.0.0.7", node_status="online"),
    ),
    RegisterNodeReply(node=NODE),
    UpdateNode(caller=CALLER, node_id="node-1", changes=NodeChanges(remark="rack 4"), revision=7),
    UpdateNodeReply(node=NODE),
    DeleteNode(caller=CALLER, node_id="node-1"),
    DeleteNodeReply(node=NODE),
    ShowNode(node_id="node-1"),
    ShowNodeReply(node=NODE),
    ListNodes(),
    ListNodesReply(nodes=(NODE,)),
    EngineChanged(
        engine="decode-0",
        process_epoch=1_795_000_000_500,
        state="READY",
        role="decode",
        revision=12,
        at_ms=1_795_000_002_000,
    ),
    DescribeEngine(),
    DescribeEngineReply(about=ENGINE.about),
    ShowEngine(engine="decode-0"),
    ShowEngineReply(engine=KnownEngine(record=ENGINE, heard=False, missing=True, silent_ms=90_000)),
    ListEngines(missing=True),
    ListEnginesReply(engines=(KnownEngine(record=ENGINE, heard=True, missing=False, silent_ms=0),)),
    ForgetEngine(engine="decode-0"),
    ForgetEngineReply(refusal="conflict", detail="decode-0 is heard: stop it first"),
    Login(username="admin", password="correct horse", address="10.0.0.9"),
    LoginReply(access_token="eyJ...", refresh_token="eyJ...", expires_s=900),
    RefreshSession(refresh_token="eyJ..."),
    RefreshSessionReply(access_token="eyJ...", refresh_token="eyJ...", expires_s=900),
    ShowSigningKeys(),
    ShowSigningKeysReply(keys=(SIGNING_KEY,)),
    RotateSigningKey(),
    RotateSigningKeyReply(done=True, kid=SIGNING_KEY.kid, grace_s=930),
    PutUser(username="node-1", password="correct horse", roles=("node",)),
    PutUserReply(done=True),
    GAP,
    HistoryProbed(stream="REQUESTS", auditor="replay-0", at_ms=1_795_000_030_000),
    TAIL,
    HistoryStateChanged(
        auditor="replay-0",
        state="not_storing",
        why="REQUESTS: 12 events were published and are in no stream",
        at_ms=1_795_000_030_000,
    ),
    MakeKey(
        key_id=API_KEY.key_id,
        digest=KEY_DIGEST,
        tenant="acme",
        name="batch jobs",
        expires_ms=API_KEY.expires_ms,
    ),
    MakeKeyReply(key=API_KEY),
    RevokeKey(key_id=API_KEY.key_id),
    RevokeKeyReply(key=API_KEY.model_copy(update={"revoked_ms": 1_795_000_600_000})),
    ListKeys(tenant="acme"),
    ListKeysReply(keys=(API_KEY,)),
    CheckKey(key_id=API_KEY.key_id, digest=KEY_DIGEST),
    CheckKeyReply(tenant="acme", expires_ms=API_KEY.expires_ms),
    KeyChanged(
        key_id=API_KEY.key_id,
        what="revoked",
        tenant="acme",
        revision=8,
        at_ms=1_795_000_600_000,
    ),
    ShowHistory(),
    ShowHistoryReply(
        state="ok",
        streams=(
            StreamNow(
                name="REQUESTS",
                messages=4120,
                bytes=3_145_728,
                bytes_max=536_870_912,
                age_max_s=604_800,
                first_seq=1,
                last_seq=4120,
                audited_seq=4120,
            ),
        ),
        gaps=(GAP,),
        gaps_total=1,
    ),
    ShowModel(model="sim/words"),
    ShowModelReply(card=MODEL_CARD),
    JournalAppended(
        owner="scheduler-0",
        owner_epoch=1_795_000_000_300,
        index=812,
        now_s=1024.25,
        settings_hash="5f0c6a1e",
        inputs=b"\x91\x91\xa1t",
        outcomes=b"\x90",
    ),
    JournalSnapshotted(
        component="scheduler",
        owner="scheduler-0",
        owner_epoch=1_795_000_000_300,
        index=800,
        now_s=1022.0,
        settings_hash="5f0c6a1e",
        settings="{}",
        state=b"\x80",
    ),
    ShowInstant(at_ms=1_795_000_020_000),
    ShowInstantReply(
        at_ms=1_795_000_020_000,
        processes=(
            ProcessThen(
                component="worker",
                instance="decode-0",
                process_epoch=1_795_000_000_100,
                host="a",
                joined_ms=1_795_000_000_400,
            ),
        ),
        engines=(EngineEntry(engine="decode-0", age_ms=80, stale=False, load=LOAD),),
        cores=(
            CoreThen(
                component="scheduler",
                instance="scheduler-0",
                process_epoch=1_795_000_000_300,
                entry=812,
                whole=True,
                age_ms=12,
            ),
        ),
        waiting=(
            WaitingThen(
                request_id="r-1", tenant="default", attempt=1, prompt_tokens=512, waited_ms=40
            ),
        ),
        placed=(
            PlacedThen(
                request_id="r-0",
                tenant="default",
                attempt=1,
                worker="decode-0",
                prefill_worker="prefill-0",
            ),
        ),
        read={"ENGINE_STATE": 9120, "FLEET": 14, "JOURNAL": 40_211},
    ),
    ExplainRequest(request_id=CARD.request_id),
    ExplainRequestReply(
        request_id=CARD.request_id,
        found=True,
        model=CARD.model,
        tenant=CARD.tenant,
        prompt_tokens=CARD.prompt_tokens,
        output_tokens=64,
        outcome="finished",
        attempts=1,
        queue_ms=0.4,
        phases_ms={"queued": 0.4, "prefill": 21.0, "decode": 512.0, "total": 534.2},
        choices=(
            Choice(
                attempt=1,
                policy="least_loaded",
                what="decode",
                candidates=(
                    ConsideredCandidate(
                        worker="decode-0",
                        chosen=True,
                        terms={"load": 2, "room": 30, "queued_tokens": 0, "free_pages": 800},
                        state_seq=41,
                        state_age_ms=12,
                        cost_ms=9.5,
                    ),
                    ConsideredCandidate(
                        worker="decode-1",
                        chosen=False,
                        terms={"load": 5, "room": 27, "queued_tokens": 0, "free_pages": 612},
                        state_seq=44,
                        state_age_ms=30,
                        cost_ms=11.0,
                    ),
                ),
                best_alternative="decode-1",
                saved_ms=1.5,
            ),
        ),
        steps=(
            StepThen(
                step="accepted",
                attempt=1,
                source="gateway-0",
                at_ms=1_795_000_020_000,
                since_ms=0,
                detail={"prompt_tokens": CARD.prompt_tokens},
            ),
        ),
    ),
    ReadPast(from_ms=1_795_000_020_000, to_ms=1_795_000_021_000, streams=("REQUESTS",)),
    ReadPastReply(
        events=(
            Happened(
                at_ms=1_795_000_020_000,
                stream="REQUESTS",
                seq=77,
                source="gateway-0",
                what="accepted",
                text="r-1 attempt=1",
            ),
        ),
    ),
    ExportPast(from_ms=1_795_000_020_000, to_ms=1_795_000_021_000),
    ExportPastReply(bundle="b7f3", total=2, offset=0, data=b"PK"),
    ReplayJournal(route="round_robin"),
    ReplayJournalReply(
        lives=(
            LifeReplayed(
                component="router",
                instance="router-0",
                process_epoch=1_795_000_000_200,
                entries=5120,
                inputs=6011,
                decisions=2400,
                exact=True,
            ),
        ),
        policy="route=round_robin",
        compared=600,
        different=1,
        effect_ms_mean=1.5,
        differences=(
            Difference(
                request_id="r-1",
                attempt=1,
                kind="placed",
                recorded="decode-0",
                instead="decode-1",
                effect_ms=1.5,
            ),
        ),
    ),
    CompleteChat(
        model=CARD.model,
        messages=({"role": "user", "content": "Which track is free?"},),
        stream=True,
    ),
    CompleteChatReply(
        n=1,
        chunks=({"choices": [{"index": 0, "delta": {"content": "Track"}}]},),
    ),
    CompleteText(model=CARD.model, prompt="Which track"),
    CompleteTextReply(
        n=7,
        done=True,
        usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    ),
    CancelGeneration(reply="_INBOX_client.default.1"),
    CancelGenerationReply(reply="_INBOX_client.default.1"),
    ExplainGeneration(request_id=CARD.request_id),
    ExplainGenerationReply(
        request_id=CARD.request_id,
        found=True,
        model=CARD.model,
        tenant=CARD.tenant,
        outcome="finished",
        attempts=1,
        phases_ms={"queued": 1.0, "total": 180.0},
    ),
)

EXAMPLES: Final[dict[type[Message], Message]] = {type(m): m for m in _ALL}


def example(message: type[M], **changes: Any) -> M:
    """The shipped instance of ``message``, with ``changes`` applied and validated."""
    shipped = EXAMPLES[message]
    assert isinstance(shipped, message)
    return message.model_validate({**dict(shipped), **changes}) if changes else shipped
