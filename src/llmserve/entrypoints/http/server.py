"""uvicorn on a loop that is already running, on a socket that is already bound."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from llmserve.core.validation import whole
from llmserve.entrypoints.http.connection import Connection

_BACKLOG = 2048
_GRACE_S = 0.5
"""How long open responses may go on once the server is asked to stop."""
_LAST_S = 0.5
"""How long they may take to say goodbye after that."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; 0 takes a free port. OSError with a sentence where it cannot be,
    ValueError where the port is none.

    Listening begins here, so that a taken port is an error of the caller's own cell.
    """
    port = whole("port", port, 0, 65_535)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, _why(error, host, port)) from None
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these
    # do not: a reply's first token then waited 40 ms for the client's delayed ACK of its head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _why(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is taken; choose another, or port=0 for a free one"
        case errno.EACCES:
            return f"port {port} on {host} may not be opened by this user; ports from 1024 may"
        case _:
            return f"cannot listen on {host} port {port}: {error.strerror or error}"


class HttpServer:
    """`start` and `stop` belong to the loop's thread; `stop` also works before `start`."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self.host, self.port = sock.getsockname()[:2]
        self._sock = sock
        self._uvicorn = _Uvicorn(_config(app))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when connections are being answered."""
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[self._sock]))
        up = asyncio.create_task(self._uvicorn.up.wait())
        await asyncio.wait((self._task, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            await self._task  # raises what went wrong

    async def stop(self) -> None:
        """Give the port back within two seconds, whatever clients do. Safe to call twice."""
        if self._task is None:
            self._sock.close()
            return
        state = self._uvicorn.server_state
        self._uvicorn.end()
        done, _ = await asyncio.wait((self._task,), timeout=_GRACE_S)
        if not done:
            for task in tuple(state.tasks):
                task.cancel()
            await asyncio.wait((self._task,), timeout=_LAST_S)
        for connection in tuple(state.connections):  # clients that do not read what they asked for
            connection.transport.abort()
        await asyncio.gather(self._task, return_exceptions=True)
        self._sock.close()


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self._ended = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Refresh the Date header each second, and end at once: uvicorn's looks ten times a second
        whether it should."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the kernel's; uvicorn would take them where the loop is the main thread's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


def _config(app: ASGIApp) -> uvicorn.Config:
    # Without any handler, Python prints warnings to stderr: into whatever cell is running.
    logger = logging.getLogger("uvicorn")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        backlog=_BACKLOG,
    )
