"""Compiles grammars to see whether it can be done: a process that is made to be killed.

A grammar of thirty characters can keep a compiler busy for ever, and inside vLLM nobody could end
it. In here the kernel does: after ``CPU_S`` seconds of work for one grammar, or twenty by the
clock, this process is gone, and so it is when a grammar makes it crash or takes its memory.

Lines come in and go out. The first one in is xgrammar's JSON of the tokenizer, answered by
``ready``; each other one is ``[kind, value]`` as JSON, answered by ``yes`` or, when xgrammar
refuses it, ``no``. The kinds are those of ``Spec`` in ``constraints.py``.
"""

import json
import resource
import signal
import sys
from typing import Any, Final

CLOCK_S: Final = 20.0
#: What one grammar may take on top of what the process has when it is ready.
MEMORY_BYTES: Final = 2 << 30
PAGE_BYTES: Final = resource.getpagesize()


def main(cpu_s: float) -> None:
    """Until nobody asks any more."""
    # Only here: it brings torch, and the agent reads this file's constants.
    import xgrammar  # type: ignore[import-not-found]  # noqa: PLC0415

    tokens = xgrammar.TokenizerInfo.deserialize_json(json.loads(sys.stdin.readline()))
    compiler = xgrammar.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)
    _limit_memory()
    _say("ready")
    for line in sys.stdin:
        kind, value = json.loads(line)
        _set_timers(cpu_s, CLOCK_S)
        try:
            grammar = _compile(xgrammar, compiler, kind, value)
            mask = xgrammar.allocate_token_bitmask(1, tokens.vocab_size)
            xgrammar.GrammarMatcher(grammar).fill_next_token_bitmask(mask)
            answer = "yes"
        except Exception:  # noqa: BLE001  (vLLM has the last word on what xgrammar refuses)
            answer = "no"
        _set_timers(0, 0)
        _say(answer)


def _compile(xgrammar: Any, compiler: Any, kind: str, value: str) -> Any:
    match kind:
        case "json":
            return compiler.compile_json_schema(value)
        case "regex":
            return compiler.compile_regex(value)
        case "lark":
            return compiler.compile_lark(value)
        case "ebnf":
            return compiler.compile_grammar(value)
        case _:
            return _compile_tag(xgrammar, compiler, value)


def _compile_tag(xgrammar: Any, compiler: Any, value: str) -> Any:
    tag = json.loads(value)
    if "structures" not in tag:
        return compiler.compile_structural_tag(value)
    items = [
        xgrammar.StructuralTagItem(begin=s["begin"], schema=json.dumps(s["schema"]), end=s["end"])
        for s in tag["structures"]
    ]
    return compiler.compile_structural_tag(items, tag["triggers"])


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[0])
    limit = pages * PAGE_BYTES + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _set_timers(cpu_s: float, clock_s: float) -> None:
    """Nobody handles their signals, so they end the process, whatever it is doing."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)


def _say(answer: str) -> None:
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()
