"""The gateway's settings."""

from typing import Literal

from pydantic import Field, SecretStr

from components.host.settings import Settings

MIB = 1024 * 1024


class GatewaySettings(Settings):
    """Where it listens, what it lets in, and when it stops waiting for others.

    ``port`` 0 takes a free one; the heartbeat's ``address`` says which.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    connections_max: int = Field(default=4096, ge=1)
    head_bytes_max: int = Field(default=32 * 1024, ge=1024)
    head_fields_max: int = Field(default=100, ge=8)
    url_bytes_max: int = Field(default=8 * 1024, ge=64)
    #: From the connect, or the first byte of a head, to the end of the head.
    head_timeout_s: float = Field(default=10.0, gt=0)
    body_bytes_max: int = Field(default=8 * MIB, ge=1024)
    #: From the end of the head to the end of the body.
    body_timeout_s: float = Field(default=30.0, gt=0)
    keep_alive_s: float = Field(default=75.0, gt=0)
    #: What a refused client still sends is read and thrown away so far, so that it can read why.
    linger_s: float = Field(default=2.0, ge=0)
    linger_bytes_max: int = Field(default=64 * MIB, ge=0)
    #: Bodies being received at the same time, all connections together.
    intake_bytes_max: int = Field(default=256 * MIB, ge=1024)
    #: Requests between acceptance and their last token.
    requests_max: int = Field(default=8192, ge=1)
    #: Keys the block hashes, so that tenants cannot probe each other's cache; random when unset.
    tenant_secret: SecretStr | None = None

    #: Whether `/v1` and `/state` want an API key (`switchyard keys`). ``open``: whoever shows none
    #: is tenant ``default``; one that is shown must be right.
    api_keys: Literal["open", "required"] = "open"
    #: For how long a key stays right that no registry can be asked about, since one was.
    api_key_grace_s: float = Field(default=300.0, ge=0)

    #: Origins of pages that may use the registry's API (``/api/...``); ``*``: any.
    cors_origins: tuple[str, ...] = Field(default=(), max_length=64)

    render_threads: int = Field(default=2, ge=1)
    render_queue_max: int = Field(default=256, ge=1)
    #: Texts up to this long are tokenised without a detour through a thread.
    render_inline_chars: int = Field(default=2048, ge=0)
    models_max: int = Field(default=256, ge=1)

    deadline_s: float = Field(default=600.0, gt=0)
    first_token_timeout_s: float | None = Field(default=None, gt=0)
    #: Attempts of one request that may end early before it is taken for poison.
    interruptions_max: int = Field(default=4, ge=0)
    #: A submission without an answer is made again after this long, so many times.
    submit_retry_s: float = Field(default=1.0, gt=0)
    submit_retries_max: int = Field(default=5, ge=0)
    #: A request that a scheduler has confirmed is shown to it again this often.
    requeue_check_s: float = Field(default=15.0, gt=0)

    silent_after_s: float = Field(default=2.0, gt=0)
    stuck_after_s: float = Field(default=10.0, gt=0)
    #: When nobody at all was heard for this long, it is we who cannot hear.
    deaf_after_s: float = Field(default=1.0, gt=0)

    #: A stream silent for this long is asked for at its worker.
    probe_s: float = Field(default=3.0, gt=0)
    resume_timeout_s: float = Field(default=2.0, gt=0)
    resume_retry_s: float = Field(default=0.25, gt=0)
    #: A gap that is not filled after this long ends the attempt.
    repair_s: float = Field(default=10.0, gt=0)
    #: So many times a worker may say that it does not know a stream.
    unknown_max: int = Field(default=2, ge=1)
    held_entries_max: int = Field(default=512, ge=1)

    #: The kernel's buffer of each connection.
    send_buffer_bytes: int = Field(default=256 * 1024, ge=4096)
    #: Tokens that may wait for a slow client before its stream is ended.
    undelivered_tokens_max: int = Field(default=16_384, ge=1)
    #: A client that takes nothing for this long is let go.
    write_stall_s: float = Field(default=60.0, gt=0)
    #: A client on the bus hears something of a streamed answer at least this often.
    client_silence_s: float = Field(default=2.0, gt=0)
    #: An answer that is not streamed over the bus must be complete within this time.
    client_whole_s: float = Field(default=120.0, gt=0)
    #: After a reconnect of ours clients may take so long to come back too.
    client_rejoin_s: float = Field(default=1.0, ge=0)
    #: On drain, how long new requests are still taken while /ready already says 503.
    drain_accept_s: float = Field(default=0.0, ge=0)
    tick_ms: int = Field(default=100, ge=1)
