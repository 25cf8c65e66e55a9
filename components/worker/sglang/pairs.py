"""The servers, which of them may get a job, and how one changes its role. Pure.

A server gets jobs while it is *listed*, was *healthy* when last looked at, and its circuit lets
them through. The circuit counts jobs that failed in a row, of those for which the server is to
blame (``faults.py``). At ``failures_max`` it opens; after ``retry_after_s`` one job, and no second
one, is let through: if it goes well the circuit closes, else it opens again. A look at its health
does not close it: a server may answer ``/health`` and still fail every job.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from components.worker.sglang.policies import PairPolicy

Side = Literal["prefill", "decode"]
#: What came of a job for one server: ``unknown`` says nothing about it.
Verdict = Literal["well", "failed", "unknown"]
#: SGLang's own default for a prefill server's bootstrap port.
DEFAULT_BOOTSTRAP_PORT: Final = 8998
#: A server that is not idle yet is asked again this much later.
ROLE_SWITCH_RETRY_S: Final = 1.0


@dataclass(eq=False, slots=True)
class Server:
    """One SGLang server. ``in_flight`` counts sequences of ours."""

    url: str
    side: Side
    bootstrap_port: int | None = None
    listed: bool = True
    in_flight: int = 0
    failures: int = 0
    #: None while the circuit is closed.
    open_until_s: float | None = None
    probing: bool = False
    #: Looks at its health that failed in a row.
    bad_looks: int = 0
    healthy: bool = True

    def admits(self, now_s: float) -> bool:
        """May a job go there?"""
        if not (self.listed and self.healthy):
            return False
        return self.open_until_s is None or (now_s >= self.open_until_s and not self.probing)


@dataclass(frozen=True, slots=True)
class Pair:
    """Where both halves of a job go."""

    prefill: Server
    decode: Server


class PairTable:
    """All servers of one agent. From ``take`` to ``settle`` a pair has ``sequences`` of ours."""

    def __init__(
        self,
        servers: Iterable[Server],
        policy: PairPolicy,
        *,
        failures_max: int,
        retry_after_s: float,
    ) -> None:
        self.servers = list(servers)
        self._policy = policy
        self._failures_max = failures_max
        self._retry_after_s = retry_after_s

    def of_side(self, side: Side) -> list[Server]:
        """The servers of one side, listed or not."""
        return [server for server in self.servers if server.side == side]

    def server(self, url: str) -> Server:
        """Raises KeyError for a server that is none of ours."""
        for server in self.servers:
            if server.url == url:
                return server
        raise KeyError(url)

    def has_pair(self, now_s: float) -> bool:
        """Could a job be placed now?"""
        return all(self._admitting(side, now_s, ()) for side in ("prefill", "decode"))

    def take(self, sequences: int, now_s: float, not_again: Collection[Server] = ()) -> Pair | None:
        """A pair for a job, or None when one side has nobody.

        Servers of ``not_again`` come into question only where there is no other.
        """
        prefills = self._admitting("prefill", now_s, not_again)
        decodes = self._admitting("decode", now_s, not_again)
        if not prefills or not decodes:
            return None
        first, second = self._policy.choose(prefills, decodes)
        pair = Pair(prefills[first], decodes[second])
        for server in (pair.prefill, pair.decode):
            server.in_flight += sequences
            server.probing = server.open_until_s is not None
        return pair

    def _admitting(self, side: Side, now_s: float, not_again: Collection[Server]) -> list[Server]:
        able = [s for s in self.servers if s.side == side and s.admits(now_s)]
        return [s for s in able if s not in not_again] or able

    def settle(self, server: Server, sequences: int, verdict: Verdict, now_s: float) -> None:
        """Its half of a job is over."""
        server.in_flight -= sequences
        assert server.in_flight >= 0, "a half is settled once"
        server.probing = False
        if verdict == "well":
            server.failures, server.open_until_s = 0, None
        elif verdict == "failed":
            server.failures += 1
            if server.failures >= self._failures_max:
                server.open_until_s = now_s + self._retry_after_s

    def looked(self, server: Server, *, well: bool) -> bool:
        """Somebody looked at its health; returns whether it is found to be dead just now."""
        was_healthy = server.healthy
        server.bad_looks = 0 if well else server.bad_looks + 1
        server.healthy = server.bad_looks < self._failures_max
        return was_healthy and not server.healthy

    # A server that changes its role

    def unlist(self, url: str) -> Server:
        """It gets no new job; what it has goes on."""
        server = self.server(url)
        server.listed = False
        return server

    def relist(self, url: str, side: Side, bootstrap_port: int | None = None) -> None:
        """It gets jobs again, in this role."""
        server = self.server(url)
        server.side, server.listed = side, True
        server.bootstrap_port = None
        if side == "prefill":
            server.bootstrap_port = bootstrap_port or DEFAULT_BOOTSTRAP_PORT


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask ``next`` again at this time."""

    until_s: float


@dataclass(frozen=True, slots=True)
class PostRoleSwitch:
    """Send this to the server's ``/pd_role_switch`` and tell ``on_answer`` what it says."""

    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RoleSwitched:
    """It has the new role and gets jobs."""


@dataclass(frozen=True, slots=True)
class RoleKept:
    """It has not changed. ``restored`` says whether it gets jobs in its old role again."""

    detail: str
    restored: bool


RoleStep = Wait | PostRoleSwitch | RoleSwitched | RoleKept


class RoleSwitch:
    """One server on its way to another role: unlist, drain, tell it, list it again.

    What runs on it is never cut off: it is told when our own jobs there are over, and asked again
    while it says that it is not idle (others may have jobs there), until ``deadline_s``. When
    draining ends without the server having been told, it is as it was, and comes back. When the
    server itself failed to change, it comes back only if it says that this is safe.
    """

    def __init__(
        self,
        table: PairTable,
        url: str,
        side: Side,
        *,
        deadline_s: float,
        bootstrap_port: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """``options`` are more fields for the server. Raises KeyError for a server not ours."""
        self._table = table
        self._server = table.unlist(url)
        self._old = (self._server.side, self._server.bootstrap_port)
        self._side = side
        self._deadline_s = deadline_s
        self._bootstrap_port = bootstrap_port
        self._body = {"new_role": side, **(options or {})}
        self._told = False

    def next(self, now_s: float) -> RoleStep:
        """What to do now, before anything is known from the server."""
        if not self._server.in_flight:
            self._told = True
            return PostRoleSwitch(self._server.url, self._body)
        if now_s < self._deadline_s:
            return Wait(min(now_s + ROLE_SWITCH_RETRY_S, self._deadline_s))
        return self._keep(f"{self._server.in_flight} sequences are still there", safe=True)

    def on_answer(self, status: int, answer: dict[str, Any], now_s: float) -> RoleStep:
        """What the server said; status 0 when nothing came."""
        if status == 200 and answer.get("success") is True:
            self._table.relist(self._server.url, self._side, self._bootstrap_port)
            return RoleSwitched()
        detail = str(answer.get("message") or f"status {status}")
        if "not idle" in detail.lower():
            if now_s < self._deadline_s:
                return Wait(min(now_s + ROLE_SWITCH_RETRY_S, self._deadline_s))
            return self._keep(detail, safe=True)  # it refused, so nothing has changed
        return self._keep(detail, safe=answer.get("safe_to_restore") is True)

    def _keep(self, detail: str, *, safe: bool) -> RoleKept:
        if safe:
            side, port = self._old
            self._server.side, self._server.bootstrap_port = side, port
            self._server.listed = True
        return RoleKept(detail, restored=safe)
