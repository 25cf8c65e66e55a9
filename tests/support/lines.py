"""Lines of a streamed answer as server-sent events know them.

httpx's ``aiter_lines`` also ends lines at U+0085, U+2028 and the like, which may stand in a text.
"""

from collections.abc import AsyncIterator

import httpx


async def lines_of(response: httpx.Response) -> AsyncIterator[str]:
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
    if rest:
        yield rest.decode()
