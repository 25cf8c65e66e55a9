"""What both buses do alike: envelopes, counts, spans, questions, and checks of what arrives.

A bus adds the transport: ``_post`` takes bytes to send at the end of the loop turn, ``_attach``
registers interest. Whatever a transport receives enters through ``Interest.arrived`` or
``_answer_arrived``, inside its read: there is no queue and no task between socket and handler, and
that is what keeps the order across subjects.
"""

import abc
import asyncio
import logging
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from bus import clients, codec, tracing
from bus.bus import ClientCall, Received, Subscription
from bus.errors import (
    AnswerTooLarge,
    AskTimedOut,
    ClientMistake,
    MalformedMessage,
    MessageTooLarge,
    NoResponders,
    NotConnected,
)
from bus.names import encode_name
from bus.served import Served
from bus.subjects import PREFIX
from schemas.message import Message

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)

log: Final = logging.getLogger("switchyard.bus")

#: Replies may only go to subjects that begin so; inboxes are ``_INBOX_<source>.<life>.<question>``.
INBOX: Final = "_INBOX_"
PAYLOAD_BYTES_MAX: Final = 8 * 1024 * 1024
#: Questions of one process that wait for their answer at the same time.
ASKS_MAX: Final = 65_536
#: Answers that one ``ask_all`` takes.
ANSWERS_MAX: Final = 4_096

#: What may wait to leave while the server is away.
OUTBOX_MESSAGES_MAX: Final = 65_536
OUTBOX_BYTES_MAX: Final = 32 * 1024 * 1024

#: ``(subject, data, reply or "")``
Post = tuple[str, bytes, str]

_PREFIX_FORM: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

COUNTERS: Final = (
    "published_total",  # messages and answers handed to the outgoing buffer
    "received_total",  # messages that reached a handler
    "frames_published_total",
    "frames_received_total",
    "dropped_total",  # outgoing: the buffer was full, or the bus closed
    "malformed_total",  # not msgpack, not an envelope, not the class that belongs on the subject
    "foreign_total",  # on a subscription that it does not match, or with headers
    "late_replies_total",  # answers to a question that nobody waits for
    "answers_too_large_total",  # over the payload limit: its asker gets a refusal (JSON) or nothing
    "refused_replies_total",  # questions that asked for the answer at something else than an inbox
    "handler_errors_total",
    "no_responders_total",
    "asks_timed_out_total",
    "not_allowed_total",  # the server refused a publication or a subscription
    "reconnects_total",
)

#: The answer's bytes, or None for "no responders".
_Waiter = Callable[[bytes | None], None]


class Outbox:
    """What waits to leave, oldest first, bounded; what does not fit is refused (the newest)."""

    __slots__ = ("_bytes", "_posts", "bytes_max", "messages_max")

    def __init__(
        self,
        *,
        messages_max: int = OUTBOX_MESSAGES_MAX,
        bytes_max: int = OUTBOX_BYTES_MAX,
    ) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self._posts: deque[Post] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._posts)

    def offer(self, post: Post) -> bool:
        """Take ``post``, unless there is no room for it.

        Empty posts to oneself (liveness, flush) always fit: they are few, and they tell the truth
        about a connection just when the buffer is full.
        """
        size = len(post[1])
        full = len(self._posts) >= self.messages_max or self._bytes + size > self.bytes_max
        if full and size:
            return False
        self._posts.append(post)
        self._bytes += size
        return True

    def first(self) -> Post:
        return self._posts[0]

    def drop_first(self) -> Post:
        post = self._posts.popleft()
        self._bytes -= len(post[1])
        return post

    def clear(self) -> int:
        """Forget everything; returns how many messages that were."""
        lost = len(self._posts)
        self._posts.clear()
        self._bytes = 0
        return lost


class Interest:
    """One subscription: what it matches and who gets it."""

    __slots__ = (
        "_counters", "_deliver", "_on_fault", "_served", "live", "matches", "pattern", "queue",
    )  # fmt: skip

    def __init__(
        self,
        pattern: str,
        queue: str | None,
        deliver: Callable[[str, str, bytes], None],
        counters: Counter[str],
        on_fault: Callable[[BaseException], None],
        served: Served | None = None,
    ) -> None:
        self.pattern = pattern
        self.queue = queue
        self.live = True
        self._deliver = deliver
        self.matches = matcher(pattern)
        self._counters = counters
        self._on_fault = on_fault
        self._served = served

    def arrived(self, subject: str, reply: str, data: bytes) -> None:
        """Check and deliver; never raises.

        A stored message can be made to arrive here under its original subject by whoever may only
        ask JetStream for it (the confused deputy): such a message is counted and dropped.
        """
        if not self.live:
            return
        if not self.matches(subject):
            self._counters["foreign_total"] += 1
            return
        if self._served is None:
            self._handle(subject, reply, data)
            return
        start_ns = time.perf_counter_ns()
        if (error := self._handle(subject, reply, data)) is not None:
            self._served.failed(error)
        self._served.took(time.perf_counter_ns() - start_ns)

    def _handle(self, subject: str, reply: str, data: bytes) -> Exception | None:
        """What was wrong, if anything."""
        try:
            self._deliver(subject, reply, data)
        except (MalformedMessage, ClientMistake) as error:
            self._counters["malformed_total"] += 1
            log.debug("dropped a message on %s: %s", subject, error)
            return error
        except AnswerTooLarge as error:  # what was asked for, not what we are: no fault of ours
            log.warning("a question on %s is not answered: %s", subject, error)
            return error
        except Exception as error:  # noqa: BLE001  (a handler's bug must not stop the reading)
            self._counters["handler_errors_total"] += 1
            self._on_fault(error)
            return error
        return None


def matcher(pattern: str) -> Callable[[str], bool]:
    """Does a subject match ``pattern`` (``*`` one token, ``>`` the rest)?"""
    if "*" not in pattern and ">" not in pattern:
        return pattern.__eq__
    form = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", ".+")
    match = re.compile(form).fullmatch
    return lambda subject: match(subject) is not None


def server_urls(url: str) -> list[str]:
    """The addresses in ``url``, which may name several; raises ``ValueError``."""
    urls = [u.strip() for u in url.split(",")]
    for one in urls:
        parts = urlsplit(one)
        if parts.scheme not in {"nats", "tls"} or not parts.hostname:
            raise ValueError(f"{one!r} is no address of a NATS server (nats://host:port)")
    return urls


class Endpoint(abc.ABC):
    """The part of ``Bus`` that does not depend on the transport."""

    def __init__(
        self,
        *,
        source: str,
        epoch: int,
        prefix: str = PREFIX,
        inbox_prefix: str | None = None,
        on_fault: Callable[[BaseException], None] | None = None,
    ) -> None:
        if not _PREFIX_FORM.fullmatch(prefix):
            raise ValueError(f"subject prefix {prefix!r} must be plain tokens")
        self._source = source
        self._epoch = epoch
        self._prefix = prefix
        inbox = inbox_prefix or INBOX + encode_name(source)
        if not inbox.startswith(INBOX):
            raise ValueError(f"inbox prefix {inbox!r} must begin with {INBOX}")
        # Two lives of one process never read each other's answers.
        self._inbox = f"{inbox}.{epoch:x}{secrets.token_hex(4)}"
        self._on_fault = on_fault or _log_fault
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._seqs: Counter[str] = Counter()
        self._waiting: dict[str, _Waiter] = {}
        self._questions = 0
        self._served: dict[str, Served] = {}
        self._closed = False
        self._reconnect_callbacks: list[Callable[[], None]] = []

    # The transport's part.

    @abc.abstractmethod
    def _post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send at the end of the loop turn, after all that was posted before."""

    @abc.abstractmethod
    async def _attach(self, interest: Interest) -> Subscription: ...

    @property
    @abc.abstractmethod
    def _payload_bytes_max(self) -> int: ...

    # What everyone sees.

    @property
    def source(self) -> str:
        return self._source

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def counters(self) -> Mapping[str, int]:
        return self._counters

    @property
    def sent(self) -> Mapping[str, int]:
        return self._seqs

    async def flush(self, timeout_s: float = 2.0) -> None:
        # A message to oneself behind all others: when it is back, the server has read them.
        back = asyncio.Event()
        token = self._wait_for(lambda _data: back.set())
        self._post(f"{self._inbox}.{token}", b"")
        try:
            async with asyncio.timeout(timeout_s):
                await back.wait()
        except TimeoutError:
            raise NotConnected(f"{self._source}: not flushed within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(token, None)

    def publish(self, subject: str, message: Message, *, trace: str | None = None) -> None:
        self._send(self._wire(subject), message, trace, "")

    def publish_frame(self, subject: str, payload: bytes) -> None:
        self._check_size(len(payload), subject)
        self._counters["frames_published_total"] += 1
        self._post(self._wire(subject), payload)

    async def subscribe(
        self,
        subject: str,
        message: type[M],
        handler: Callable[[Received[M]], None],
        *,
        queue: str | None = None,
    ) -> Subscription:
        counters = self._counters
        open_to_clients = clients.is_open_to_clients(message)
        of_a_tenant = clients.is_of_a_tenant(message)

        def deliver(arrived_on: str, reply: str, data: bytes) -> None:
            logical = self._logical(arrived_on)
            if of_a_tenant and not self._stays_within(logical, reply):
                return
            if open_to_clients and clients.speaks_json(data):
                self._handle_json(logical, reply, data, message, handler)
                return
            received = self._open(logical, reply, data, message)
            if open_to_clients:
                clients.check(received.message)
            counters["received_total"] += 1
            if tracing.is_sampled(received.traceparent):
                _handle_traced(received, handler, len(data), queue)
            else:
                handler(received)

        return await self._attach(self._interest(subject, queue, deliver))

    async def subscribe_frames(
        self, subject: str, handler: Callable[[str, bytes], None]
    ) -> Subscription:
        counters = self._counters

        def deliver(arrived_on: str, _reply: str, data: bytes) -> None:
            counters["frames_received_total"] += 1
            handler(self._logical(arrived_on), data)

        return await self._attach(self._interest(subject, None, deliver))

    def _interest(
        self, subject: str, queue: str | None, deliver: Callable[[str, str, bytes], None]
    ) -> Interest:
        """Where a queue group is, a question is answered: what is asked there is counted."""
        wire = self._wire(subject)
        served = None if queue is None else self._served.setdefault(wire, Served())
        return Interest(wire, queue, deliver, self._counters, self._on_fault, served)

    async def ask(
        self,
        subject: str,
        question: Message,
        reply: type[R],
        *,
        timeout_s: float,
        trace: str | None = None,
    ) -> R:
        answer: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()

        def arrived(data: bytes | None) -> None:
            if not answer.done():
                found = None if data is None else self._open(subject, "", data, reply).message
                answer.set_result(found)

        token = self._wait_for(arrived)
        try:
            self._send(self._wire(subject), question, trace, f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError:
            self._counters["asks_timed_out_total"] += 1
            raise AskTimedOut(f"{subject}: no answer within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(token, None)
        if message is None:
            raise NoResponders(subject)
        return message

    async def ask_all(
        self, subject: str, question: Message, reply: type[R], *, wait_s: float
    ) -> list[Received[R]]:
        answers: list[Received[R]] = []
        nobody = asyncio.Event()

        def arrived(data: bytes | None) -> None:
            if data is None:
                nobody.set()
            elif len(answers) < ANSWERS_MAX:
                answers.append(self._open(subject, "", data, reply))

        token = self._wait_for(arrived)
        try:
            self._send(self._wire(subject), question, None, f"{self._inbox}.{token}")
            async with asyncio.timeout(wait_s):
                await nobody.wait()
        except TimeoutError:
            pass  # the time to collect is over
        finally:
            self._waiting.pop(token, None)
        return answers

    def respond(self, question: Received[M], reply: Message) -> None:
        address = question.reply
        if address is None or not address.startswith(INBOX):
            # Else a questioner could make us publish where only we may (the forged reply).
            self._counters["refused_replies_total"] += 1
            log.warning("%s asked for its answer at %r: refused", question.source, address)
            return
        if question.json:
            self._post_json(address, reply.model_dump_json().encode())
            return
        try:
            self._send(address, reply, question.traceparent, "")
        except MessageTooLarge as error:
            self._counters["answers_too_large_total"] += 1
            raise AnswerTooLarge(f"{question.subject}: {error}") from None

    # Clients.

    async def subscribe_calls(
        self, subject: str, handler: Callable[[ClientCall], None], *, queue: str
    ) -> Subscription:
        def deliver(arrived_on: str, reply: str, data: bytes) -> None:
            logical = self._logical(arrived_on)
            if reply and self._stays_within(logical, reply):
                self._counters["received_total"] += 1
                handler(ClientCall(clients.tenant_of(logical), reply, data))

        return await self._attach(self._interest(subject, queue, deliver))

    @property
    def served(self) -> Mapping[str, Served]:
        return self._served

    async def discoverable(self, subjects: Mapping[str, Callable[[], bytes]]) -> None:
        def deliver(arrived_on: str, reply: str, _data: bytes) -> None:
            if reply.startswith(INBOX):
                self._post_json(reply, subjects[arrived_on]())

        for subject in subjects:
            _ = await self._attach(Interest(subject, None, deliver, self._counters, self._on_fault))

    def answer(self, call: ClientCall, on_gone: Callable[[], None]) -> "_Answers":
        def arrived(data: bytes | None) -> None:
            if data is None:
                on_gone()

        return _Answers(self, call.reply, self._wait_for(arrived))

    def call(
        self, subject: str, data: bytes, on_answer: Callable[[bytes | None], None]
    ) -> "_Asked":
        self._check_size(len(data), subject)
        asked = _Asked(self, self._wait_for(on_answer))
        self._counters["published_total"] += 1
        self._post(self._wire(subject), data, asked.address)
        return asked

    def _handle_json(
        self,
        subject: str,
        reply: str,
        data: bytes,
        message: type[M],
        handler: Callable[[Received[M]], None],
    ) -> None:
        try:
            question = clients.question_in(message, data)
        except ClientMistake as mistake:
            if reply.startswith(INBOX):
                self._post_json(reply, clients.refusal(mistake.code, str(mistake)))
            raise
        self._counters["received_total"] += 1
        handler(Received(question, subject, "client", 0, 0, None, reply or None, json=True))

    def _post_json(self, address: str, data: bytes) -> None:
        if len(data) > self._payload_bytes_max:
            self._counters["answers_too_large_total"] += 1
            data = clients.refusal("answer_too_large", "the answer exceeds the bus's payload limit")
        self._counters["published_total"] += 1
        self._post(address, data)

    def _stays_within(self, subject: str, reply: str) -> bool:
        """Else a tenant could have us speak into the inbox of another."""
        if not reply or reply.startswith(clients.client_inbox(clients.tenant_of(subject)) + "."):
            return True
        self._counters["refused_replies_total"] += 1
        log.warning("%s wants its answer at %r: refused", subject, reply)
        return False

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._reconnect_callbacks.append(callback)

    # What the transports use.

    def _answer_arrived(self, token: str, data: bytes | None) -> None:
        """Something for this process's inbox; ``data`` None says that nobody listens."""
        waiter = self._waiting.get(token)
        if waiter is None:
            self._counters["late_replies_total"] += 1
            return
        if data is None:
            self._counters["no_responders_total"] += 1
        try:
            waiter(data)
        except MalformedMessage as error:
            self._counters["malformed_total"] += 1
            log.debug("dropped an answer: %s", error)

    def _wait_for(self, waiter: _Waiter) -> str:
        """Register ``waiter``; returns the last token of the inbox to give out."""
        if self._closed:
            raise NotConnected(f"{self._source}: the bus is closed")
        if len(self._waiting) >= ASKS_MAX:
            raise AskTimedOut(f"{ASKS_MAX} questions wait already")
        self._questions += 1
        token = f"{self._questions:x}"
        self._waiting[token] = waiter
        return token

    def _reconnected(self) -> None:
        """Call back everyone who wants to know."""
        self._counters["reconnects_total"] += 1
        for callback in tuple(self._reconnect_callbacks):
            try:
                callback()
            except Exception as error:  # noqa: BLE001  (one's bug must not keep it from the others)
                self._counters["handler_errors_total"] += 1
                self._on_fault(error)

    def _send(self, wire: str, message: Message, trace: str | None, reply: str) -> None:
        schema_id = message.schema_id
        seq = self._seqs[schema_id] + 1
        data = self._encode(message, trace, seq)
        self._check_size(len(data), wire)
        if trace is not None and tracing.is_sampled(trace):
            here = tracing.sent(trace, self._logical(wire), message, len(data))
            data = self._encode(message, here, seq)
        self._seqs[schema_id] = seq
        self._counters["published_total"] += 1
        self._post(wire, data, reply)

    def _encode(self, message: Message, trace: str | None, seq: int) -> bytes:
        return codec.encode(
            message, traceparent=trace, source=self._source, epoch=self._epoch, seq=seq
        )

    def _open(self, subject: str, reply: str, data: bytes, expected: type[M]) -> Received[M]:
        decoded = codec.decode(data)
        message = decoded.message
        if type(message) is not expected:
            raise MalformedMessage(f"{message.schema_id} where {expected.schema_id} belongs")
        return Received(
            message,
            subject,
            decoded.source,
            decoded.epoch,
            decoded.seq,
            decoded.traceparent,
            reply or None,
        )

    def _check_size(self, size: int, subject: str) -> None:
        if size > self._payload_bytes_max:
            raise MessageTooLarge(f"{subject}: {size} bytes, {self._payload_bytes_max} allowed")

    def _wire(self, subject: str) -> str:
        if self._prefix == PREFIX:
            return subject
        return self._prefix + subject.removeprefix(PREFIX)

    def _logical(self, subject: str) -> str:
        if self._prefix == PREFIX or not subject.startswith(self._prefix + "."):
            return subject
        return PREFIX + subject[len(self._prefix) :]


class _Answers:
    """``bus.Answers``: each message names where the server may say that nobody listens."""

    __slots__ = ("_address", "_back", "_bus", "_token")

    def __init__(self, bus: Endpoint, address: str, token: str) -> None:
        self._bus = bus
        self._address = address
        self._token = token
        self._back = f"{bus._inbox}.{token}"  # noqa: SLF001  (a part of it)

    def send(self, data: bytes) -> None:
        bus = self._bus
        bus._check_size(len(data), self._address)  # noqa: SLF001
        bus._counters["published_total"] += 1  # noqa: SLF001
        bus._post(self._address, data, self._back)  # noqa: SLF001

    def close(self) -> None:
        self._bus._waiting.pop(self._token, None)  # noqa: SLF001


class _Asked:
    """``bus.Asked``."""

    __slots__ = ("_bus", "_token", "address")

    def __init__(self, bus: Endpoint, token: str) -> None:
        self._bus = bus
        self._token = token
        self.address = f"{bus._inbox}.{token}"  # noqa: SLF001

    def close(self) -> None:
        self._bus._waiting.pop(self._token, None)  # noqa: SLF001


def _handle_traced(
    received: Received[M], handler: Callable[[Received[M]], None], size: int, queue: str | None
) -> None:
    trace = cast("str", received.traceparent)
    with tracing.received(trace, received.subject, received.message, size, queue) as here:
        handler(
            Received(
                received.message,
                received.subject,
                received.source,
                received.epoch,
                received.seq,
                here,
                received.reply,
            )
        )


def _log_fault(error: BaseException) -> None:
    log.error("a handler raised", exc_info=error)
