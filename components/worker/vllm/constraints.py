"""Whether vLLM may be given a constraint: first it is compiled where that can do no harm.

vLLM compiles grammars in threads of its engine process. One that never ends would take such a
thread for good, and one that crashes everything; see ``rehearsal.py``. So every new constraint is
rehearsed there once, and only what was compiled in time, or refused in an orderly way, goes on to
vLLM, which then says why it refuses.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from components.worker.vllm.backend import BadParameter, BadSequence, Constraint
from components.worker.vllm.loading import in_thread

#: Constraints that wait for the one process; the next one fails its job, for another engine.
WAITING_MAX: Final = 32
#: Verdicts that are remembered, 32 bytes each.
VERDICTS_MAX: Final = 4_096

log = logging.getLogger("switchyard.worker")


def rehearsal(cpu_s: float) -> list[str]:
    """The process that may spend so much on one constraint."""
    main = f"from components.worker.vllm.rehearsal import main; main({cpu_s!r})"
    return [sys.executable, "-P", "-c", main]


class Spec(NamedTuple):
    """For xgrammar: ``kind`` is ``json``, ``regex``, ``ebnf``, ``lark`` or ``structural_tag``."""

    kind: str
    value: str


class Rehearsals:
    """The process is started for the first constraint, which waits seconds for it.

    ``tokens``: xgrammar's JSON of the tokenizer. ``command``: that process.
    """

    def __init__(self, tokens: Callable[[], str], command: Sequence[str]) -> None:
        self._tokens = tokens
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._stopped = False

    async def check(self, constraint: Constraint, spec: Spec) -> None:
        """Returns when vLLM may have it. Raises ``BadParameter``, or ``BadSequence`` when busy."""
        name = sha256("\0".join(spec).encode()).digest()
        if name not in self._verdicts:
            await self._rehearse(name, spec)
        self._verdicts.move_to_end(name)
        if not self._verdicts[name]:
            raise BadParameter(constraint.param, "takes too long to compile")

    async def _rehearse(self, name: bytes, spec: Spec) -> None:
        if self._waiting >= WAITING_MAX:
            raise BadSequence(f"{WAITING_MAX} constraints wait to be compiled")
        self._waiting += 1
        try:
            async with self._turn:
                if name in self._verdicts:  # meanwhile
                    return
                verdict: list[bool] = []
                await in_thread(lambda: verdict.append(self._ask(spec)))
                self._verdicts[name] = verdict[0]
                if len(self._verdicts) > VERDICTS_MAX:
                    self._verdicts.popitem(last=False)
        finally:
            self._waiting -= 1

    def _ask(self, spec: Spec) -> bool:
        """In a thread. Raises ``BadSequence`` when the process cannot be started."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(spec) + "\n")
            process.stdin.flush()
            if process.stdout.readline():
                return True
        except OSError:
            pass  # it is gone
        code = self._end()
        if self._stopped:
            raise BadSequence("the engine stops")
        log.warning("a constraint (%s) ended its rehearsal: %s", spec.kind, _name_of(code))
        return False

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(self._tokens()) + "\n")
            process.stdin.flush()
            ready = process.stdout.readline() == "ready\n"
        except OSError:
            ready = False
        if not ready:
            raise BadSequence(f"no constraint can be compiled: {_name_of(self._end())}")
        if self._stopped:
            self._end()
            raise BadSequence("the engine stops")
        return process

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                pipe.close()
        return code

    def stop(self) -> None:
        """Kill the process. From any thread, harmless twice."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()


def _name_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
