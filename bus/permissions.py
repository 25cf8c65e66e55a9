"""Who may say and hear what, generated from the catalogue of messages.

Nothing is allowed that is not listed. A token that must be the sender's or reader's own name
(``sender_is``, ``reader_is``) is that name; for the instance ``*`` it stays open, which is how one
key serves all instances of a component (their buses need its ``inbox_prefix``). Replies need no
list: whoever answers questions may publish once to the reply subject of each question it received,
for a short while.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from bus import discovery
from bus.clients import CLIENT_INBOX, client_inbox
from bus.endpoint import INBOX
from bus.names import encode_name
from bus.streams import BUCKETS, STREAMS
from bus.subjects import ANY, PREFIX
from schemas.catalogue import CATALOGUE, FRAMES_SUBJECT, Component, Entry

#: Components, and who else has a key: ``history`` reads streams, ``provisioner`` creates them.
Role = Component | Literal["history", "provisioner"]
ROLES: Final[tuple[Role, ...]] = (*get_args(Component), "history", "provisioner")

#: One answer per question, given within this time.
RESPONSES_MAX: Final = 1
RESPONSES_TTL_S: Final = 60

#: The operator's account for the past; everybody else lives in CONTROL.
CONTROL: Final = "CONTROL"
HISTORY: Final = "HISTORY"


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects as they stand on the wire. ``responses``: may it answer what it is asked?"""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: bool = False
    account: str = CONTROL


def permissions_for(component: str, instance: str, *, prefix: str = PREFIX) -> Permissions:
    """What the server grants to ``instance`` of ``component`` (or of the role of that name)."""
    role = next((r for r in ROLES if r == component), None)
    if role is None:
        raise ValueError(f"no such component or role: {component!r}")
    inbox = f"{inbox_prefix(component, instance)}.>"
    rights = Permissions((inbox,), (inbox,))
    if role == "history":
        services = tuple(s.local for s in history_services())
        return _with(rights, publish=services, account=HISTORY)
    if role == "provisioner":
        return _with(rights, publish=_PROVISIONING)
    if role == "registry":
        rights = _with(rights, publish=_RECORDS)
    said, heard = _frames(role, instance, prefix)
    said += [_subject(e, e.sender_is, role, instance, prefix) for e in _sent_by(role)]
    heard += [_subject(e, e.reader_is, role, instance, prefix) for e in _read_by(role)]
    if any(e.streams for e in _read_by(role)):
        said.append(f"{CLIENT_INBOX}.>")
    looked, served = _discovery(role, instance)
    said += looked
    heard += served
    asked = any(e.reply for e in _read_by(role))
    return replace(_with(rights, publish=tuple(said), subscribe=tuple(heard)), responses=asked)


def inbox_prefix(component: str, instance: str) -> str:
    """Where its replies arrive.

    An open instance shares its component's inbox: NATS cannot match a part of a token, so there is
    no pattern for "the inbox of any gateway". A client's instance is its tenant.
    """
    if component == "client":
        return CLIENT_INBOX if instance == ANY else client_inbox(instance)
    if encode_name(instance) == CLIENT_INBOX.removeprefix(INBOX):
        raise ValueError(f"no {component} may be called {instance!r}: clients' inboxes begin so")
    return INBOX + (component if instance == ANY else encode_name(instance))


@dataclass(frozen=True, slots=True)
class Service:
    """A part of JetStream's API that account HISTORY may use, under a name of its own there."""

    subject: str
    local: str
    many_answers: bool


def history_services() -> tuple[Service, ...]:
    """All that the account HISTORY may ask of JetStream: about streams, and for their messages.

    STREAM.INFO needs another name: under its own one the server answers that HISTORY has no
    JetStream (2.15.1), before it looks at imports.
    """
    return tuple(
        service
        for stream in (s.name for s in STREAMS)
        for service in (
            Service(f"$JS.API.STREAM.INFO.{stream}", stream_info(stream), many_answers=False),
            _direct(f"$JS.API.DIRECT.GET.{stream}"),
            _direct(f"$JS.API.DIRECT.GET.{stream}.>"),
        )
    )


def stream_info(stream: str) -> str:
    """Where account HISTORY asks for the state of ``stream``."""
    return f"history.stream.info.{stream}"


def _direct(subject: str) -> Service:
    return Service(subject, subject, many_answers=True)


#: Create and mend, but neither delete nor purge nor read.
_PROVISIONING: Final = (
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.*",
    "$JS.API.STREAM.UPDATE.*",
    "$JS.API.STREAM.INFO.*",
)

#: The registry reads and writes records by revision; removing one is a marker, not a deletion.
_RECORDS: Final = tuple(
    subject
    for bucket in BUCKETS
    for subject in (
        f"$KV.{bucket.name}.>",
        f"$JS.API.STREAM.INFO.{bucket.stream}",
        f"$JS.API.DIRECT.GET.{bucket.stream}",
        f"$JS.API.DIRECT.GET.{bucket.stream}.>",
    )
)


def _with(
    rights: Permissions,
    *,
    publish: tuple[str, ...] = (),
    subscribe: tuple[str, ...] = (),
    account: str = CONTROL,
) -> Permissions:
    return Permissions(
        (*rights.publish, *publish), (*rights.subscribe, *subscribe), rights.responses, account
    )


def _sent_by(role: Role) -> list[Entry]:
    return [e for e in CATALOGUE if role in e.senders]


def _read_by(role: Role) -> list[Entry]:
    return [e for e in CATALOGUE if role in e.readers]


def _subject(entry: Entry, own: str | None, role: Role, instance: str, prefix: str) -> str:
    """The entry's template with the own token filled in and the others open."""

    def token(part: str) -> str:
        if not part.startswith("{"):
            return part
        name = part[1:-1]
        if own is not None and name == "component":
            return role
        return _own(instance) if name == own else ANY

    return ".".join((prefix, *map(token, entry.subject.split("."))))


def _discovery(role: Role, instance: str) -> tuple[list[str], list[str]]:
    """NATS's own subjects, by which services are looked for: what is said, and what is heard."""

    def subjects(service: str, name: str) -> list[str]:
        return [s for verb in discovery.VERBS for s in discovery.subjects_of(verb, service, name)]

    said: list[str] = []
    if role in discovery.LOOKERS:
        found = [s for service, _ in discovery.SERVICES.values() for s in subjects(service, ANY)]
        said = list(dict.fromkeys(found))
    served = next((s for kind, (s, _) in discovery.SERVICES.items() if kind == role), None)
    return said, subjects(served, instance) if served else []


def _own(instance: str) -> str:
    return ANY if instance == ANY else encode_name(instance)


def _frames(role: Role, instance: str, prefix: str) -> tuple[list[str], list[str]]:
    """Frames are no message of the catalogue: a worker sends its own, a gateway reads its own."""
    filled = f"{prefix}.{FRAMES_SUBJECT}"
    said = [filled.format(gateway=ANY, worker=_own(instance))] if role == "worker" else []
    heard = [filled.format(gateway=_own(instance), worker=ANY)] if role == "gateway" else []
    return said, heard
