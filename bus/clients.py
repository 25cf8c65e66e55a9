"""What is different about clients: they belong to a tenant, share its inbox, and speak JSON.

A client's key is made for a tenant, and its inbox lies under ``_INBOX_client.<tenant>``: the token
between lets a gateway be allowed to answer clients and nobody else. Tenants cannot hear each other;
clients of one tenant can.
"""

import json
from typing import Final, TypeVar

from pydantic import ValidationError

from bus.errors import ClientMistake, MalformedMessage
from bus.names import decode_name, encode_name
from schemas.catalogue import BY_MESSAGE
from schemas.message import Message

M = TypeVar("M", bound=Message)

#: The inboxes of all clients begin so.
CLIENT_INBOX: Final = "_INBOX_client"
DEFAULT_TENANT: Final = "default"
#: Questions that are answered from what is known; calls that produce tokens have their own limit.
QUESTION_BYTES_MAX: Final = 64 * 1024
#: Of a text that a client chose, shown again in an error.
_SHOWN_MAX: Final = 200


def client_inbox(tenant: str) -> str:
    """What all inboxes of a tenant's clients begin with, up to the next dot."""
    return f"{CLIENT_INBOX}.{encode_name(tenant)}"


def tenant_of(subject: str) -> str:
    """The tenant whose key let this be published: the last token of subjects for clients.

    Raises ``MalformedMessage`` where no key was asked for and the token is none.
    """
    try:
        return decode_name(subject.rpartition(".")[2])
    except ValueError as error:
        raise MalformedMessage(f"no name of a tenant in {subject}") from error


def is_open_to_clients(message: type[Message]) -> bool:
    entry = BY_MESSAGE.get(message)
    return entry is not None and "client" in entry.senders


def is_of_a_tenant(message: type[Message]) -> bool:
    """Does it travel on subjects that end with the tenant who asks?"""
    entry = BY_MESSAGE.get(message)
    return entry is not None and entry.sender_is == "tenant"


def speaks_json(data: bytes) -> bool:
    """Is this a question as a person would type it? Ours begin with an array's head."""
    return not data or data[:1] in b"{ \t\r\n"


def question_in(message: type[M], data: bytes) -> M:
    """The question that a client asked in JSON; nothing at all asks without wishes.

    Raises ``ClientMistake``, whose text is fit to be shown.
    """
    if len(data) > QUESTION_BYTES_MAX:
        raise ClientMistake("too_large", f"a question has at most {QUESTION_BYTES_MAX} bytes")
    try:
        # The parser bounds nesting; a field of another type or name is an error.
        return message.model_validate_json(data or b"{}", strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the question"
        text = f"{where}: {first['msg']}"[:_SHOWN_MAX]
        raise ClientMistake("invalid_question", text) from error


def check(message: Message) -> None:
    """A client's question in our own form has the right types; its limits are looked at here.

    Raises ``MalformedMessage``.
    """
    try:
        _ = type(message).model_validate(dict(message), strict=True)
    except ValidationError as error:
        raise MalformedMessage(f"{message.schema_id} with a value that is not allowed") from error


def refusal(code: str, message: str) -> bytes:
    """What a client is told instead of an answer."""
    return json.dumps({"error": {"code": code, "message": message}}).encode()
