"""What the agent of an OpenAI-compatible server is told."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from components.host.settings import Settings
from components.worker.elsewhere_settings import table
from schemas.fleet import Feature

#: ``vllm``: it takes and returns token ids, and vLLM's own parameters. ``openai``: neither.
Dialect = Literal["vllm", "openai"]


class OpenAISettings(Settings):
    """How the server is spoken to, looked at and judged. Times in seconds."""

    dialect: Literal["auto", "vllm", "openai"] = "auto"
    #: Directory with ``tokenizer.json``; without it prompts go as texts and chats as messages.
    tokenizer_dir: str = ""
    #: The server's ``--api-key``, in a file.
    api_key_file: str = ""
    #: How the KV of a prompt gets from one server to another: ``params`` that P's answer returns
    #: and D's request repeats (NIXL and what works like it); ``p2p_nccl`` by the request's id.
    handover: Literal["none", "params", "p2p_nccl"] = "none"
    #: ``host:port`` where the server's KV connector listens (``p2p_nccl``).
    kv_address: str = ""
    #: ``p2p_nccl``: offer the KV when P begins to compute it, so that D waits for it in the server.
    overlap: bool = False
    #: What the server's own parsers take apart: tools, reasoning.
    parses: tuple[Feature, ...] = ()

    #: Requests that may be open at the server; more are refused.
    connections_max: int = Field(default=1024, ge=1)
    start_wait_s: float = Field(default=600.0, gt=0)
    poll_s: float = Field(default=1.0, gt=0)
    poll_timeout_s: float = Field(default=2.0, gt=0)
    #: So many polls in a row must fail before a silent server counts as gone.
    polls_failed_max: int = Field(default=3, ge=1)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    #: A stream on which nothing comes for so long has failed; a queued request is silent too.
    silence_s: float = Field(default=300.0, gt=0)


OpenAITable = Annotated[OpenAISettings, BeforeValidator(table)]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, and where; ``url`` has no path. The figures count where it says none."""

    name: str
    created_s: int
    url: str
    context_tokens_max: int
    seqs_max: int
    step_tokens_max: int
    kv_pages: int | None
