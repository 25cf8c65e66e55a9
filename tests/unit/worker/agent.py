"""One agent's core, and what tests say to it. An engine that takes everything answers at once."""

from components.domain.bodies import Body, Emitted, encode_body
from components.domain.outcomes import Ask, Count, Record, Send
from components.worker.core import WorkerCore
from components.worker.engine import Capabilities, EngineLoad, Prefilled
from components.worker.outcomes import Submit
from components.worker.settings import WorkerSettings
from schemas.attempt import AttemptReported, RunAttempt
from schemas.body import SamplingParameters
from schemas.examples import CARD, example
from schemas.fleet import HeartbeatSent

ME, EPOCH = "decode-0", 100
PEER, PEER_EPOCH = "prefill-0", 50
ABLE = Capabilities(frozenset(("aggregated", "prefill", "decode")), 4096, 200, 1000)
LOAD = EngineLoad(
    running=0,
    waiting=0,
    queued_tokens=0,
    kv_pages_used=0,
    kv_pages_total=200,
    seqs_max=8,
    watermark=0,
)


def body(prompt=range(300, 333), emitted=None, **sampling):
    given = {c: Emitted(tuple(ids)) for c, ids in (emitted or {}).items()}
    return encode_body(Body(tuple(prompt), SamplingParameters(**sampling), given))


def run(request_id="r1", attempt=1, phase="aggregated", **more):
    card = CARD.model_copy(
        update={
            "request_id": request_id,
            "attempt": attempt,
            **{k: more.pop(k) for k in list(more) if k in type(CARD).model_fields},
        }
    )
    paired: dict[str, str | int | None] = {"transfer_id": None, "peer": None, "peer_epoch": None}
    if phase != "aggregated":
        paired = {"transfer_id": "t1", "peer": PEER, "peer_epoch": PEER_EPOCH}
    given = {
        "body": body(),
        "worker_epoch": EPOCH,
        "router": "router-0",
        "router_epoch": 1,
        "dispatch_seq": 1,
        **paired,
        **more,
    }
    return example(RunAttempt, card=card, phase=phase, **given)


def heartbeat(instance, component="worker", epoch=1, **more):
    return example(
        HeartbeatSent,
        component=component,
        instance=instance,
        process_epoch=epoch,
        **{"state": "ready", "running": 0, **more},
    )


class Agent:
    """The core, its clock, and every outcome since the last look."""

    def __init__(self, settings=None, refuses=None, able=ABLE):
        self.core = WorkerCore(ME, EPOCH, settings or WorkerSettings(role="decode"), able)
        self.refuses = refuses
        self.now_s = 10.0
        self.outcomes = []
        self.hear()
        self.core.on_room(200, self.now_s)

    def hear(self, gateway_epoch=7):
        """Everybody is alive."""
        for one in (
            heartbeat("gateway-0", "gateway", gateway_epoch),
            heartbeat(PEER, epoch=PEER_EPOCH),
        ):
            self.take(self.core.on_heartbeat(one, self.now_s))

    def take(self, outcomes):
        for outcome in outcomes or ():
            self.outcomes.append(outcome)
            if isinstance(outcome, Submit):
                key = outcome.job.key
                if self.refuses:
                    self.take(self.core.on_refused(key, self.refuses, self.now_s))
                else:
                    self.take(self.core.on_submitted(key, self.now_s))
        return outcomes

    def run(self, *args, **more):
        self.take(self.core.on_run(run(*args, **more), self.now_s))
        return self

    def say(self, method, *args):
        self.take(getattr(self.core, method)(*args, self.now_s))
        return self

    def hands(self, message, epoch=PEER_EPOCH):
        self.take(self.core.on_handoff(message, epoch, self.now_s))
        return self

    def prefilled(self, key=("r1", 1)):
        return self.say("on_engine", Prefilled(key, 33, 3, 33_000, 16, {"cached_tokens": 16}))

    def after(self, seconds, *, hearing=True):
        """Time passes in ticks of 50 ms; everybody is heard meanwhile, or nobody."""
        for _ in range(round(seconds / 0.05)):
            self.now_s += 0.05
            if hearing:
                self.hear()
            self.take(self.core.on_tick(self.now_s))
        return self

    def taken(self):
        """What was wanted since the last look."""
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def wanted(self):
        """Of that, what concerns engine and streams."""
        return [o for o in self.taken() if not isinstance(o, Send | Ask | Record | Count)]

    def sent(self, kind=None):
        messages = [o.message for o in self.taken() if isinstance(o, Send)]
        return [m for m in messages if kind is None or isinstance(m, kind)]

    def reports(self):
        """(state, nack or finish) of what was reported."""
        return [(r.state, r.nack or r.finish) for r in self.sent(AttemptReported)]

    def report(self, load=LOAD):
        return self.core.load_report(load)
