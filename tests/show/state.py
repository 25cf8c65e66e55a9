"""The seed's datagram, the broker's permissions, and the journal's replay."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from components.host.journal import pack_inputs, unpack_inputs
from components.replay.check import Report
from components.replay.recording import Recording
from schemas.catalogue import CATALOGUE, FRAMES_SUBJECT
from schemas.engine import EngineStatesReceived
from schemas.request import ScheduleRequest
from schemas.routing import RouteWindow
from tests.show.deaths import recording_with_kills
from tests.show.fleet import SWITCHYARD, Fleet
from tests.show.proof import Figure, Run, Void
from tests.show.trace_run import trace_run

FAST = ("--profile", "constant:ttft_ms=5,itl_ms=2")
ENGINE = "http://10.0.0.7:8000"


async def datagram(run: Run) -> Figure:
    """`switchyard send-state`, then ENGINE_STATE and `switchyard status`."""
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet:
        sent = await asyncio.create_subprocess_exec(
            *(*SWITCHYARD, "send-state", "--data", str(fleet.data), "--engine-id", ENGINE),
            *("--field", "pending_tokens_total=384", "--field", "latency_pred_ms=12.5"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await sent.communicate()
        if sent.returncode != 0:
            raise Void(f"send-state failed: {said.decode()[-200:]}")
        await asyncio.sleep(0.5)
        stored = [
            state
            for d in await fleet.history("ENGINE_STATE")
            if isinstance(d.message, EngineStatesReceived) and d.message.engine_id == ENGINE
            for state in d.message.states
        ]
        engines = (await fleet.status())["engines"]
    shown = [e for e in engines if e["engine"] == ENGINE]
    right = [s for s in stored if (s.pending_tokens_total, s.latency_pred_ms) == (384, 12.5)]
    text = f"{len(right)} of {len(stored)} right in ENGINE_STATE, {len(shown)} in status"
    return Figure(text, len(stored) == len(right) == len(shown) == 1)


@dataclass(frozen=True, slots=True)
class _Probe:
    """One component tries one subject of the catalogue."""

    component: str
    subject: str
    allowed: bool


async def permissions(run: Run) -> Figure:
    """Each component's own key tries to publish on each subject of the catalogue."""
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet:
        page = fleet.page()
        wrongly_let, wrongly_denied, tried = [], [], 0
        for name, process in page.processes.items():
            if process.component not in ("gateway", "scheduler", "router", "bridge", "worker"):
                continue
            key = Path(page.keys_dir) / f"{name}.nk"
            denied, probes = await _denied(page.nats_url, name, process.component, key)
            tried += len(probes)
            for probe in probes:
                if probe.subject in denied and probe.allowed:
                    wrongly_denied.append(f"{name} {probe.subject}")
                if probe.subject not in denied and not probe.allowed:
                    wrongly_let.append(f"{name} {probe.subject}")
    text = (
        f"{tried} attempts to publish; {len(wrongly_let)} let through that the catalogue does not "
        f"allow, {len(wrongly_denied)} denied that it does"
    )
    for first in (*wrongly_let[:1], *wrongly_denied[:1]):
        text += f"; first: {first}"
    return Figure(text, not wrongly_let and not wrongly_denied and tried > 100)


async def _denied(
    url: str, instance: str, component: str, key: Path
) -> tuple[set[str], list[_Probe]]:
    """Subjects that the server refused, by its own words, and all that were tried."""
    import nats  # noqa: PLC0415  (only here: everything else goes through the bus)

    refused: set[str] = set()

    async def on_error(error: Exception) -> None:
        text = str(error)
        if "ermissions violation for publish" in text.lower():
            refused.add(text.split('"')[1] if '"' in text else text)

    client = await nats.connect(
        url,
        nkeys_seed=str(key),
        error_cb=on_error,
        inbox_prefix=f"_INBOX_{instance}",
        allow_reconnect=False,
    )
    probes = [
        _probe(component, instance, template, senders, own) for template, senders, own in _all()
    ]
    for probe in probes:
        await client.publish(probe.subject, b"\xc1")  # no message: readers count it as malformed
    await client.flush()
    await asyncio.sleep(0.2)
    await client.close()
    return refused, probes


def _all() -> list[tuple[str, tuple[str, ...], str | None]]:
    rows = [(e.subject, tuple(e.senders), e.sender_is) for e in CATALOGUE]
    return [*rows, (FRAMES_SUBJECT, ("worker",), "worker")]


def _probe(
    component: str, instance: str, template: str, senders: tuple[str, ...], own: str | None
) -> _Probe:
    tokens = []
    for token in template.split("."):
        if not token.startswith("{"):
            tokens.append(token)
        elif token[1:-1] == own and component in senders:
            tokens.append(instance)
        elif token == "{component}":
            tokens.append(component)
        else:
            tokens.append("nobody")
    return _Probe(component, "yard." + ".".join(tokens), component in senders)


async def replay_of_a_run(run: Run) -> Figure:
    """The journals of the trace run and of the run with kills, through the same cores."""
    played = (await trace_run(run)).recording
    killed = await recording_with_kills(run)
    began = time.monotonic()
    reports = {name: _reports(r) for name, r in (("trace", played), ("kills", killed))}
    took_s = time.monotonic() - began
    every = [report for found in reports.values() for report in found]
    entries, decisions = sum(r.entries for r in every), sum(r.decisions for r in every)
    inexact = [r for r in every if not r.exact]
    unexplained = [step for r in every for step in r.unexplained]
    unseen = sum(len(r.unseen) for r in every)
    changed = _one_changed_input_shows(played)
    text = (
        f"{len(every)} lives, {entries} entries, {decisions} decisions in {took_s:.1f} s: "
        f"{len(every) - len(inexact)} lives exact; {len(unexplained)} outcomes without an entry"
        f"{' (' + str(unexplained[:3]) + ')' if unexplained else ''}, {unseen} entries whose "
        f"outcome a kill kept back; one changed input {'shows' if changed else 'does not show'}"
    )
    if inexact:
        first = inexact[0]
        text += (
            f"; first inexact: {first.owner}, {len(first.mismatches)} mismatches, "
            f"{len(first.gaps)} gaps, {len(first.unresolved)} unresolved"
        )
    enough = len(reports["trace"]) >= 2 and len(reports["kills"]) >= 4
    return Figure(text, not inexact and changed and enough and decisions > 100)


def _reports(recording: Recording) -> list[Report]:
    return [recording.check(life) for life in recording.lives()]


def _one_changed_input_shows(recording: Recording) -> bool:
    """Lengthen one prompt in the journal: some decision must come out differently."""
    for life in recording.lives():
        for place, entry in enumerate(recording.entries[life]):
            inputs = unpack_inputs(entry.inputs)
            for at, item in enumerate(inputs):
                if not isinstance(item, ScheduleRequest | RouteWindow):
                    continue
                inputs[at] = _lengthened(item)
                recording.entries[life][place] = entry.model_copy(
                    update={"inputs": pack_inputs(inputs)}
                )
                shows = bool(recording.check(life).mismatches)
                recording.entries[life][place] = entry
                return shows
    return False


def _lengthened(item: ScheduleRequest | RouteWindow) -> ScheduleRequest | RouteWindow:
    if isinstance(item, ScheduleRequest):
        longer = item.card.model_copy(update={"prompt_tokens": item.card.prompt_tokens + 1})
        return ScheduleRequest(card=longer)
    cards = tuple(c.model_copy(update={"prompt_tokens": c.prompt_tokens + 1}) for c in item.cards)
    return item.model_copy(update={"cards": cards})
