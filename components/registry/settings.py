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
