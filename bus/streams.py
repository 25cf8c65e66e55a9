"""What JetStream keeps, as data: streams (what happened) and buckets (records).

Limits suit a laptop; a cluster raises ``replicas`` and the bytes. The oldest goes first: history
shortens itself long before a disk is full, because a full disk stays broken after space returns.
``evt`` subjects are published without waiting and without a reply, so the streams send no
acknowledgements (``no_ack``): else whoever sets a reply makes the server publish there in its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from bus.subjects import PREFIX, history_probed
from schemas.catalogue import CATALOGUE

MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
MIB: Final = 1024 * 1024
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream. Subjects are logical (they begin with ``yard``).

    One on disk also takes the probes that ask whether it stores anything.
    """

    name: str
    description: str
    subjects: tuple[str, ...]
    storage: Literal["file", "memory"]
    max_age_s: int
    max_bytes: int
    per_subject_max: int = -1
    message_ttl: bool = False

    def config(self, prefix: str = PREFIX, replicas: int = 1) -> dict[str, Any]:
        """The stream's configuration in JetStream's own words."""
        probes = (history_probed(self.name, "*"),) if self.storage == "file" else ()
        return {
            "name": self.name,
            "description": self.description,
            "subjects": [prefix + s.removeprefix(PREFIX) for s in self.subjects + probes],
            "storage": self.storage,
            "retention": "limits",
            "discard": "old",
            # Compressing a full block of 8 MB holds up every delivery, tokens too, for 15 to 25 ms.
            "compression": "none",
            "max_age": self.max_age_s * _NS,
            "max_bytes": self.max_bytes,
            "max_msgs_per_subject": self.per_subject_max,
            "num_replicas": replicas,
            "no_ack": True,
            "allow_direct": True,
            "deny_delete": True,
            "deny_purge": True,
            "allow_msg_ttl": self.message_ttl,
            # Duplicates are told by (source, epoch, seq); the server need not remember ids long.
            "duplicate_window": min(self.max_age_s, MINUTE_S) * _NS,
        }


@dataclass(frozen=True, slots=True)
class Bucket:
    """A key-value bucket: records with compare-and-set by revision. Liveness is not kept here.

    With a ``history`` of one value a record may be made smaller, or deleted, when all is full.
    """

    name: str
    description: str
    history: int = 1
    max_bytes: int = 16 * MIB
    value_bytes_max: int = 256 * 1024

    @property
    def stream(self) -> str:
        return f"KV_{self.name}"

    def config(self, prefix: str = PREFIX, replicas: int = 1) -> dict[str, Any]:
        """The bucket's stream, as any NATS client expects it."""
        del prefix  # buckets have no place for it: a bucket's subjects are $KV.<name>.>
        return {
            "name": self.stream,
            "description": self.description,
            "subjects": [f"$KV.{self.name}.>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "compression": "none",
            "max_age": 0,
            "max_bytes": self.max_bytes,
            "max_msg_size": self.value_bytes_max,
            "max_msgs_per_subject": self.history,
            "num_replicas": replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,  # for what a deleted record leaves behind
            "deny_delete": True,
            "deny_purge": False,  # the server wants it so when roll-ups are allowed
            "duplicate_window": 2 * MINUTE_S * _NS,
        }


STREAMS: Final[tuple[Stream, ...]] = (
    Stream(
        "ENGINE_STATE",
        "What engines said of themselves",
        ("yard.evt.engine.>",),
        "file",
        max_age_s=DAY_S,
        max_bytes=256 * MIB,
    ),
    Stream(
        "KV_EVENTS",
        "Pages that entered or left prefix caches",
        ("yard.evt.kv.>",),
        "file",
        max_age_s=6 * HOUR_S,
        max_bytes=256 * MIB,
    ),
    Stream(
        "REQUESTS",
        "The steps of each request and the decisions about it, never its content",
        ("yard.evt.request.>",),
        "file",
        max_age_s=7 * DAY_S,
        max_bytes=512 * MIB,
    ),
    Stream(
        "JOURNAL",
        "The ordered inputs of each core owner, for bit-exact replay",
        ("yard.evt.journal.>",),
        "file",
        max_age_s=DAY_S,
        max_bytes=512 * MIB,
    ),
    Stream(
        "FLEET",
        "Who joined and who left",
        ("yard.evt.fleet.>",),
        "file",
        max_age_s=30 * DAY_S,
        max_bytes=64 * MIB,
    ),
    Stream(
        "TOKENS",
        "Token frames, for streams whose worker is gone",
        ("yard.out.>",),
        "memory",
        max_age_s=5 * MINUTE_S,
        max_bytes=64 * MIB,
    ),
    Stream(
        "INFLIGHT",
        "Bodies of running requests, one message per request",
        ("yard.evt.body.>",),
        "memory",
        max_age_s=15 * MINUTE_S,
        max_bytes=128 * MIB,
        per_subject_max=1,
        message_ttl=True,
    ),
)

BUCKETS: Final[tuple[Bucket, ...]] = (
    Bucket("nodes", "Registered nodes"),
    Bucket(
        "engines",
        "Engines of ours: who they are, and how each was when last heard",
        max_bytes=80 * MIB,
        value_bytes_max=16 * 1024,
    ),
    Bucket("models", "Model cards", value_bytes_max=4 * MIB, max_bytes=64 * MIB),
    Bucket("tenants", "Tenants and their limits"),
    Bucket("keys", "Hashes of API keys"),
    Bucket("users", "Accounts, with hashes of their passwords"),
)

BY_NAME: Final[dict[str, Stream]] = {s.name: s for s in STREAMS}
#: What is history; streams in memory are none.
ON_DISK: Final = tuple(s.name for s in STREAMS if s.storage == "file")


def _kept_in() -> dict[str, str]:
    return {
        entry.message.schema_id: stream.name
        for entry in CATALOGUE
        for stream in STREAMS
        for pattern in stream.subjects
        if f"{PREFIX}.{entry.subject}".startswith(pattern.removesuffix(">"))
    }


#: Schema id of an event -> the one stream that keeps it.
KEPT_IN: Final = _kept_in()

#: What all streams on disk may take together, unless the server is told otherwise.
FILE_STORE_BYTES: Final = 4 * 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept of one stream; None: as it stands above. ``per_subject``: messages."""

    age_s: int | None = None
    bytes: int | None = None
    per_subject: int | None = None


def limited(limits: Mapping[str, Limits]) -> tuple[Stream, ...]:
    """All streams, some with other limits, by their names.

    Raises ``ValueError`` for a stream that there is not, a limit that is none, and for more on disk
    than a server has room for: it would refuse the last stream, or lose what it cannot keep.
    """
    if unknown := set(limits) - set(BY_NAME):
        raise ValueError(f"no stream {min(unknown)!r}; there are {', '.join(BY_NAME)}")
    made = tuple(_limited(stream, limits.get(stream.name, Limits())) for stream in STREAMS)
    on_disk = sum(s.max_bytes for s in made if s.storage == "file")
    if on_disk > FILE_STORE_BYTES:
        raise ValueError(
            f"the streams on disk would take {on_disk // MIB} MiB of {FILE_STORE_BYTES // MIB}"
        )
    return made


def _limited(stream: Stream, limits: Limits) -> Stream:
    given = (limits.age_s, limits.bytes, limits.per_subject)
    if any(value is not None and value < 1 for value in given):
        raise ValueError(f"{stream.name}: a limit is at least 1")
    return replace(
        stream,
        max_age_s=limits.age_s or stream.max_age_s,
        max_bytes=limits.bytes or stream.max_bytes,
        per_subject_max=limits.per_subject or stream.per_subject_max,
    )
