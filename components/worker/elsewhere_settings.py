"""What the settings of engines elsewhere have in common."""

from urllib.parse import urlsplit

import orjson


def table(given: object) -> object:
    """An environment variable holds a whole table as JSON."""
    return orjson.loads(given) if isinstance(given, str) else given


def server_url(given: object) -> str:
    """``http://host:port`` without a slash at its end. Raises ValueError."""
    if not isinstance(given, str):
        raise ValueError("a server is named by its URL")  # noqa: TRY004  (pydantic shows these)
    parts = urlsplit(given)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
        raise ValueError("a server's URL is http://HOST:PORT or https://HOST:PORT")
    if parts.query or parts.fragment or (parts.port is not None and not parts.port):
        raise ValueError("a server's URL has no query, no fragment, and no port 0")
    return given.rstrip("/")
