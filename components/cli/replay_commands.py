"""What each `switchyard replay` command does."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from bus.history import History, Stored
from components.cli import found, instants, keyring, past_view
from components.cli.bundles import CannotKeep, Kept
from components.cli.errors import CommandFailed
from components.cli.past_source import library, source
from components.cli.progress import progress
from components.replay.bundle import BadBundle, BundlePast
from components.replay.export import export as write_bundle
from components.replay.instant import instant
from components.replay.past import KEPT, Past, time_of
from components.replay.reading import happened, merged, places_between
from components.replay.rerun import BadPolicy, TooMuch, changes_of, record, rerun
from schemas.past import Happened, ReplayJournalReply

#: Between two lines of a range that is played at a speed nobody waits longer than this.
PAUSE_S_MAX: Final = 10.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _streams(args: argparse.Namespace) -> list[str]:
    chosen = [s.upper() for s in args.stream or KEPT]
    if unknown := [s for s in chosen if s not in KEPT]:
        raise CommandFailed(f"no stream {unknown[0]!r}; there are {', '.join(KEPT)}", 2)
    return chosen


def _print(lines: list[Happened], args: argparse.Namespace, *, flush: bool = False) -> None:
    for line in lines:
        text = json.dumps(line.model_dump()) if args.json else past_view.line(line)
        print(text, flush=flush)


async def tail(args: argparse.Namespace) -> int:
    """Until it is interrupted."""
    yard = found.yard(args)
    key_file = keyring.find(yard.keys, keyring.HISTORY, keyring.HISTORY)
    async with asyncio.TaskGroup() as group:
        for stream in _streams(args):
            group.create_task(_follow(stream, yard, key_file, args))
    return 0


async def _follow(
    stream: str, yard: found.Found, key_file: Path | None, args: argparse.Namespace
) -> None:
    async with History(yard.nats_url, key_file, prefix=yard.prefix) as history:
        async for stored in history.follow(stream):
            _print(happened(time_of(stored), stream, stored, args.request), args, flush=True)


async def at(args: argparse.Namespace) -> int:
    at_ms = instants.parse(args.instant, now_ms())
    async with source(args) as past:
        then = await instant(past, at_ms)
    print(then.model_dump_json(indent=1) if args.json else past_view.instant(then))
    return 0


async def between(args: argparse.Namespace) -> int:
    """Print at once, or at the pace at which it happened."""
    if args.speed is not None and args.speed <= 0:
        raise CommandFailed("--speed must be more than 0; leave it out to print at once", 2)
    from_ms, to_ms = instants.parse(args.begin, now_ms()), instants.parse(args.end, now_ms())
    async with source(args) as past:
        places = await places_between(past, _streams(args), from_ms, to_ms)
        async for at_ms, stream, stored in _paced(merged(past, places), args.speed):
            lines = happened(at_ms, stream, stored, args.request)
            _print(lines, args, flush=args.speed is not None)
    return 0


async def _paced(
    messages: AsyncIterator[tuple[int, str, Stored]], speed: float | None
) -> AsyncIterator[tuple[int, str, Stored]]:
    began_s, first_ms = time.monotonic(), None
    async for at_ms, stream, stored in messages:
        if speed is not None:
            first_ms = at_ms if first_ms is None else first_ms
            due_s = began_s + (at_ms - first_ms) / 1000 / speed
            wait_s = due_s - time.monotonic()
            if wait_s > PAUSE_S_MAX:  # nothing happened for long: go on sooner
                began_s -= wait_s - PAUSE_S_MAX
                wait_s = PAUSE_S_MAX
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        yield at_ms, stream, stored


async def _span(args: argparse.Namespace, past: Past) -> tuple[int, int]:
    """The instants of --from and --to; the beginning is that of the bundle or of REQUESTS."""
    if isinstance(past, BundlePast):
        begin = past.manifest.from_ms
        end = past.manifest.to_ms
    else:
        begin, end = 0, now_ms()
    from_ms = instants.parse(args.begin, now_ms()) if args.begin else begin
    to_ms = end if args.end == "now" else instants.parse(args.end, now_ms())
    if to_ms < from_ms:
        raise CommandFailed("--to lies before --from", 2)
    return from_ms, to_ms


async def export(args: argparse.Namespace) -> int:
    async with source(args) as past:
        from_ms, to_ms = await _span(args, past)
        with progress() as shown:
            shown.step(f"writing {args.file}")
            try:
                made = await write_bundle(
                    past, args.file, from_ms=from_ms, to_ms=to_ms, now_ms=now_ms()
                )
            except (BadBundle, OSError) as error:
                args.file.unlink(missing_ok=True)
                raise CommandFailed(f"cannot write {args.file}: {error}") from error
    print(past_view.bundle(made, args.file))
    return 0


async def take(args: argparse.Namespace) -> int:
    """Every hash and every message checked and a copy kept; then what there is to do with it."""
    try:
        taken = library(args).keep(args.file, args.name)
    except (BadBundle, CannotKeep) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"cannot keep {args.file}: {error}") from error
    assert taken.manifest is not None
    if args.json:
        print(json.dumps(_fields(taken), indent=1))
        return 0
    print(past_view.bundle(taken.manifest, taken.path))
    print(f"kept as {taken.name}:")
    where = f" --data {args.data}" if args.data else ""
    for words in ("at", "range", "run"):
        print(f"  switchyard replay {past_view.example(words, taken.manifest, taken.name)}{where}")
    return 0


async def kept(args: argparse.Namespace) -> int:
    """What was imported, after one was removed."""
    here = library(args)
    try:
        if args.remove is not None and not here.remove(args.remove):
            raise CommandFailed(f"no bundle {args.remove!r} was imported to {here.folder}")
        listed = here.listed()
    except OSError as error:
        raise CommandFailed(f"cannot use {here.folder}: {error.strerror}") from error
    if args.json:
        print(json.dumps([_fields(one) for one in listed], indent=1))
    else:
        print(past_view.bundles(listed) if listed else f"no bundle was imported to {here.folder}")
    return 0


def _fields(kept: Kept) -> dict[str, object]:
    said = kept.manifest.fields() if kept.manifest else {"damaged": kept.damaged}
    return {"name": kept.name, "file": str(kept.path), "file_bytes": kept.bytes, **said}


async def again(args: argparse.Namespace) -> int:
    """Exit code 1 when a decision did not come out again."""
    try:
        changes_of(args.policy, args.route)
        async with source(args) as past:
            from_ms, to_ms = await _span(args, past)
            answer, took_s = await _rerun(args, past, from_ms, to_ms)
    except BadPolicy as error:
        raise CommandFailed(str(error), 2) from error
    except TooMuch as error:
        raise CommandFailed(str(error)) from error
    if args.json:
        print(json.dumps({**answer.model_dump(), "took_s": round(took_s, 3)}, indent=1))
    else:
        print(past_view.rerun(answer, took_s))
    if not answer.lives:
        print("no core left a snapshot in this stretch: choose an earlier --from", file=sys.stderr)
    return 0 if answer.lives and all(life.exact for life in answer.lives) else 1


async def _rerun(
    args: argparse.Namespace, past: Past, from_ms: int, to_ms: int
) -> tuple[ReplayJournalReply, float]:
    with progress() as shown:
        shown.step("reading the journal")
        # A bundle begins where its cores can start, which is before its first instant.
        recording = await record(past, 0 if isinstance(past, BundlePast) else from_ms, to_ms)
        shown.step(f"running {sum(map(len, recording.entries.values()))} entries again")
        began_s = time.perf_counter()
        answer = rerun(recording, args.policy, args.route)
        return answer, time.perf_counter() - began_s
