"""What an operator may choose about the registry. Section ``registry``."""

from pydantic import Field

from components.host.settings import Settings


class RegistrySettings(Settings):
    """Times are on the registry's own clock, from when a message was heard."""

    #: A process that was silent for longer is lost.
    silent_after_s: float = Field(default=2.0, gt=0)
    #: What an engine said is stale after that.
    stale_after_s: float = Field(default=2.0, gt=0)
    #: Whoever was silent for that long is forgotten.
    purge_after_s: float = Field(default=300.0, gt=0)
    tick_ms: int = Field(default=250, ge=10)
    processes_max: int = Field(default=4096, ge=1)
    engines_max: int = Field(default=4096, ge=1)
    registered_max: int = Field(default=4096, ge=1)

    #: Engines that stand in records have so long to be heard after a start of the registry.
    engine_return_s: float = Field(default=30.0, gt=0)
    #: How long the record of an engine that is not heard is kept.
    engine_record_days: float = Field(default=30.0, gt=0)

    nodes_max: int = Field(default=4096, ge=1)
    #: How often nodes that say that they are online are asked over HTTP; 0: never.
    probe_interval_s: float = Field(default=0.0, ge=0)
    probe_timeout_s: float = Field(default=2.0, gt=0)
    probe_path: str = Field(default="/health", pattern=r"^/[\x21-\x7e]*$")
    probes_max: int = Field(default=32, ge=1)
    #: So many failures in a row and a node is unhealthy, so many successes and it is well again.
    probe_failures_max: int = Field(default=3, ge=1)
    probe_successes_min: int = Field(default=2, ge=1)

    keys_max: int = Field(default=4096, ge=1)
    #: How long an API key that was revoked or has ended can still be seen.
    key_record_days: float = Field(default=30.0, gt=0)

    #: Where the keys that sign sessions are kept, and the first password of ``admin`` is put.
    #: Empty: this registry keeps no accounts. Of several registries one has it and is asked:
    #: two would sign with different keys, or write over each other's.
    access_dir: str = ""
    users_max: int = Field(default=4096, ge=1)
    access_token_s: int = Field(default=900, ge=60, le=3600)
    refresh_token_s: int = Field(default=86_400, ge=60)
    sessions_max: int = Field(default=4096, ge=1)
    login_per_user_min: int = Field(default=5, ge=1)
    login_per_address_min: int = Field(default=20, ge=1)
    #: The older service's login by name alone; gateways that do not listen on loopback refuse it,
    #: and `up` does not start one.
    insecure_username_login: bool = False
