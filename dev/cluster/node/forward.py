"""The API server under its Service's name and port, for programs that ask no variable: kubernetes.default.svc:443.

A Service's port is its target port here (see `hosts`), which holds for all but this one: the API server's is any free
one. Port 443 is root's, so that only the backend `podman` has it.
"""

import asyncio
from contextlib import suppress

PIECE = 1 << 16


async def forward(host: str, port: int, *, to: int) -> asyncio.Server:
    """Listen on an address of this machine and pass connections on to one of its ports."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(_copy(reader, other[1]), _copy(other[0], writer))

    return await asyncio.start_server(meet, host, port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()
