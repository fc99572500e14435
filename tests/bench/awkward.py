"""A server that answers with given bytes, in given pieces, and leaves when told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@asynccontextmanager
async def answering(
    pieces: Sequence[bytes], *, head: bytes = HEAD, cut: bool = False, mute: bool = False,
    met: list[str] | None = None,
) -> AsyncIterator[str]:
    """The url of a server whose every answer's body comes in these pieces, each a chunk and a
    write of its own. cut: close the connection where the body's end should be. mute:
    answer nothing. met: gets a word per connection."""

    served: set[asyncio.Task[object]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            served.add(task)
        if met is not None:
            met.append(str(writer.get_extra_info("peername")))
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split(b":")[1])
                    for line in request.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                await reader.readexactly(length)
                if mute:
                    await reader.read()
                    return
                writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
                for piece in pieces:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(0)  # the reader's turn: pieces arrive one by one
                if cut:
                    return
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    if served:  # a client may have left before it was met
        await asyncio.wait(served, timeout=30)
