"""The Python client of the bus: ask for tokens and stream them, see who is there and how they fare.

async with Client("nats://127.0.0.1:4222", key_file=key) as client:
    async for delta in client.chat(model="m", messages=[{"role": "user", "content": "Hello"}]):
        print(delta.text, end="")

deploy/CLIENTS.md has the same without Python.
"""

from components.client.client import Client
from components.client.errors import (
    AnswerLost,
    CannotConnect,
    ClientError,
    GatewayLost,
    NobodyAnswers,
    ReaderTooSlow,
    Refused,
    TimedOut,
)
from components.client.stream import Delta, Stream

__all__ = [
    "AnswerLost",
    "CannotConnect",
    "Client",
    "ClientError",
    "Delta",
    "GatewayLost",
    "NobodyAnswers",
    "ReaderTooSlow",
    "Refused",
    "Stream",
    "TimedOut",
]
