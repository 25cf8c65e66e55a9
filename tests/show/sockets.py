"""Only NATS: the open sockets of each process, as the kernel lists them."""

import socket
from urllib.parse import urlsplit

import psutil

from tests.show.fleet import Fleet
from tests.show.load import tell_all, told
from tests.show.proof import Figure, Run, Void


async def only_nats(run: Run) -> Figure:
    """Under load, list every internet socket of every component and name what is not allowed."""
    fleet = Fleet(run.folder / "fleet", ("--profile", "constant:ttft_ms=5,itl_ms=2"), run.fault)
    async with fleet:
        page = fleet.page()
        stories = [told(seed, 40, 60) for seed in range(12)]
        async with fleet.client() as client:
            await tell_all(client, "sim/words", stories)
            if not all(s.exact for s in stories):
                raise Void("the load did not run")
            nats_port = urlsplit(page.nats_url).port
            http_port = urlsplit(page.url).port
            udp_port = int(page.udp.rsplit(":", 1)[1])
            allowed: dict[str, set[tuple[str, int | None]]] = {
                "gateway": {("tcp", http_port)},
                "bridge": {("udp", udp_port)},
            }
            foreign, nats, seen = [], 0, 0
            for name, process in page.processes.items():
                if process.component not in COMPONENTS:
                    continue
                for kind, local, remote in _sockets(fleet.pid(name)):
                    seen += 1
                    if kind == "tcp" and remote == nats_port:
                        nats += 1
                    elif (kind, local) not in allowed.get(process.component, set()):
                        foreign.append(f"{name}: {kind} {local} -> {remote}")
    components = sum(p.component in COMPONENTS for p in page.processes.values())
    if nats < components:
        raise Void(f"{nats} NATS connections of {components} processes seen")
    text = f"{components} processes, {seen} sockets, {len(foreign)} not allowed"
    if foreign:
        text += f": {foreign[0]}"
    return Figure(text, not foreign, {"foreign": foreign})


COMPONENTS = frozenset({"gateway", "scheduler", "router", "registry", "bridge", "worker", "replay"})


def _sockets(pid: int) -> list[tuple[str, int, int | None]]:
    """``(tcp or udp, local port, remote port)`` of each internet socket."""
    return [
        (
            "udp" if c.type == socket.SOCK_DGRAM else "tcp",
            c.laddr.port,
            getattr(c.raddr, "port", None),
        )
        for c in psutil.Process(pid).net_connections(kind="inet")
    ]
