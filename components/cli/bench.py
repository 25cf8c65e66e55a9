"""`switchyard bench serve`: load on a running system, then its latencies."""

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from components.bench import report, workload
from components.bench.driver import Load, Outcome, Progress
from components.bench.driver import run as run_load
from components.bench.target import PATHS, BadTarget, Target, Unreachable, ask_server
from components.cli.chat_once import KEY_VARIABLE
from components.cli.errors import CommandFailed
from components.domain.traces import Arrival, mean_rate_per_s, rescaled

#: Of a closed loop, when nothing else is said.
CLIENTS: Final = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    serve = parser.add_subparsers(dest="what", required=True, metavar="serve").add_parser(
        "serve", help="streamed requests to an OpenAI-compatible address"
    )
    add = serve.add_argument
    add("--url", required=True, help="http://HOST:PORT")
    add("--allow-remote", action="store_true", help="the load is welcome on another machine")
    add("--model", help="default: the first that the address lists")
    add("--api", choices=sorted(PATHS), default="completions", help="default: %(default)s")
    shape = serve.add_argument_group("open loop: requests arrive as recorded, however many wait")
    shape.add_argument("--trace", type=Path, metavar="FILE", help="of Azure's or Mooncake's form")
    shape.add_argument("--rate", type=positive, metavar="X", help="arrivals per second on average")
    shape.add_argument("--limit", type=count, metavar="N", help="only the first N arrivals")
    shape = serve.add_argument_group("closed loop: each client sends when its last answer ended")
    shape.add_argument(
        "--concurrency", type=count, metavar="C", help="number of clients (default: 16)"
    )
    shape.add_argument("--requests", type=count, default=100, metavar="N", help="default: 100")
    shape.add_argument("--prompt-tokens", type=count, default=512, metavar="P", help="default: 512")
    shape.add_argument("--output-tokens", type=count, default=64, metavar="O", help="default: 64")
    add("--slo-ttft-ms", type=positive, metavar="MS", help="goodput: bound on a request's TTFT")
    add("--slo-itl-ms", type=positive, metavar="MS", help="goodput: bound on its mean ITL")
    add("--timeout-s", type=positive, default=600.0, metavar="S", help="per request (600)")
    add("--run-timeout-s", type=positive, default=3600.0, metavar="S", help="all in all (3600)")
    add("--seed", type=int, help="of the prompts; default: another one each time")
    add("--save", type=Path, metavar="FILE", help="one JSON line per request")
    add("--json", action="store_true", help="the summary as JSON on standard output")
    serve.epilog = f"A key in {KEY_VARIABLE} is sent along, as OpenAI's clients do."


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("more than 0")
    return number


def run(args: argparse.Namespace) -> int:
    seed = secrets.randbits(32) if args.seed is None else args.seed
    try:
        arrivals = arrivals_from(args)
        key = os.environ.get(KEY_VARIABLE, "")
        target = Target.from_url(args.url, allow_remote=args.allow_remote, api_key=key)
        model, prompts = ask_server(target, args.model, args.api, seed)
    except (BadTarget, Unreachable, workload.BadTrace) as error:
        raise CommandFailed(str(error)) from error
    load = Load(
        target=target,
        model=model,
        api=args.api,
        arrivals=arrivals,
        prompts=prompts,
        concurrency=None if args.trace else args.concurrency or CLIENTS,
        request_timeout_s=args.timeout_s,
        run_timeout_s=args.run_timeout_s,
    )
    with bar(len(arrivals)) as watch:
        outcome = run_load(load, watch)
    figures = {
        "url": args.url,
        "model": model,
        "api": args.api,
        "seed": seed,
        "offered_per_s": mean_rate_per_s(arrivals) or None,
        **report.summary(outcome.records, slo_from(args), outcome.generator),
    }
    if args.save:
        save(args.save, outcome)
    print(json.dumps(figures) if args.json else report.as_text(figures))
    return 0 if figures["ok"] == len(arrivals) else 1


def arrivals_from(args: argparse.Namespace) -> list[Arrival]:
    """The workload that the flags describe; raises ``BadTrace`` or ``CommandFailed``."""
    if args.trace is None:
        if args.rate or args.limit:
            raise CommandFailed("--rate and --limit belong to --trace (open loop)", 2)
        return workload.equal(args.requests, args.prompt_tokens, args.output_tokens)
    if args.concurrency is not None:
        raise CommandFailed("either --trace (open loop) or --concurrency (closed loop)", 2)
    arrivals = workload.read_trace(args.trace, args.limit)
    return rescaled(arrivals, args.rate) if args.rate else arrivals


def slo_from(args: argparse.Namespace) -> report.Slo:
    return report.Slo(args.slo_ttft_ms, args.slo_itl_ms)


def save(file: Path, outcome: Outcome) -> None:
    """One JSON line per request, in order of arrival."""
    try:
        with file.open("w", encoding="utf-8") as lines:
            for record in sorted(outcome.records, key=lambda record: record.index):
                lines.write(json.dumps(record.to_plain()) + "\n")
    except OSError as error:
        raise CommandFailed(f"cannot write {file}: {error.strerror}") from error


class bar:  # noqa: N801  (reads as what it is: with bar(...) as watch)
    """Shows on standard error how far a run is; in a log, a line every five seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._rich: Any = None
        self._next_s = time.monotonic() + 5

    def __enter__(self) -> Callable[[Progress], None]:
        if not sys.stderr.isatty():
            return self._plain
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._rich = Bar(
            TextColumn("requests"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[under_way]} under way, {task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._rich.start()
        self._task = self._rich.add_task("", total=self._total, under_way=0, failed=0)
        return self._draw

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()

    def _draw(self, progress: Progress) -> None:
        self._rich.update(
            self._task,
            completed=progress.ended,
            under_way=progress.sent - progress.ended,
            failed=progress.failed,
        )

    def _plain(self, progress: Progress) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + 5
        print(
            f"{progress.ended} of {progress.total} ended, {progress.failed} failed", file=sys.stderr
        )
