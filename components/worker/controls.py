"""Carries out what operators ask of the engine, and waits for it.

What may be asked, and what it changes, is the core's to say (``posture.py``). A wish that the
engine takes longer over than its deadline goes on: its operator hears so, and until it is done the
next one is told that this worker is busy.
"""

import asyncio
from collections.abc import Awaitable, Callable

from components.host.host import Host
from components.worker.core import Outcomes, WorkerCore
from components.worker.engine import Engine, EngineRefused
from schemas.engine import ControlEngine, ControlEngineReply


class Controls:
    """``do`` performs the core's outcomes; ``until_idle`` waits for the work in the engine."""

    def __init__(
        self,
        host: Host,
        engine: Engine,
        do: Callable[[Outcomes], None],
        until_idle: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._engine = engine
        self._do = do
        self._until_idle = until_idle

    async def fulfil(self, control: ControlEngine, core: WorkerCore) -> ControlEngineReply:
        """From the wish to its answer: at most the wish's ``deadline_ms``."""
        outcomes, objection = core.begin_control(control, self._host.clock.now_s())
        if objection:
            return core.controlled(objection)
        self._do(outcomes)
        work = self._host.tasks.spawn(f"{control.action} the engine", self._work(control, core))
        if control.action == "set_role":  # its own deadline ends it
            return core.controlled(await work)
        finished, _ = await asyncio.wait({work}, timeout=control.deadline_ms / 1e3)
        late = f"still under way after {control.deadline_ms} ms"
        return core.controlled(work.result() if finished else late)

    async def _work(self, control: ControlEngine, core: WorkerCore) -> str:
        """Do it; why it could not be done, or nothing."""
        detail = "stopped"
        try:
            detail = await self._try(control, core)
        except EngineRefused as refused:
            detail = str(refused)
        except Exception as error:  # noqa: BLE001  (whatever it was, the operator hears of it)
            detail = f"{type(error).__name__}: {error}"
        finally:
            core.end_control(control, done=not detail)
        return detail

    async def _try(self, control: ControlEngine, core: WorkerCore) -> str:
        if control.action == "set_role":
            if control.role == core.posture.role or await self._is_idle(control):
                return ""
            left = len(core.running)
            return f"{left} attempts were left after {control.deadline_ms} ms"
        if not core.posture.needs_engine(control):
            return ""
        return await self._ask_engine(control)

    async def _is_idle(self, control: ControlEngine) -> bool:
        return await self._until_idle(control.deadline_ms / 1e3)

    async def _ask_engine(self, control: ControlEngine) -> str:
        engine = self._engine
        match control.action:
            case "pause":
                await engine.pause(keep=control.keep)
            case "resume":
                await engine.resume()
            case "sleep":
                await engine.sleep(control.level)
            case "wake":
                await engine.wake()
            case "reset_prefix_cache":
                return "" if await engine.reset_prefix_cache() else "pages are in use"
            case _:
                raise AssertionError(f"no engine has anything to do for {control.action}")
        return ""
