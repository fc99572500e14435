"""A child process that holds a model: started, spoken to in frames, gone when its parent is.

One socket pair carries length-prefixed frames both ways. The kernel's end lives on the loop and
never blocks it. The child's end is two threads: its reader ends the process at once when the
socket closes or the parent changes, so a killed kernel leaves no orphan, and its sender takes
from a queue, so the child's work never waits for a kernel that is busy. That queue is bounded by
what the child was asked to do: for an engine, by the max_tokens of the requests it runs.

The child is the leader of its own session: Jupyter's interrupt goes to the kernel's process group
and does not reach it. Its output goes to an anonymous file, which never fills up as a pipe would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import llmserve
from llmserve.engines.process.processes import MARK, mark
from llmserve.engines.process.threads import in_own_thread

HEADER = struct.Struct("!I")
LAST_LINES = 40
PARENT_POLL_S = 1.0


class Frames:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + size
            if len(self._buffer) < end:
                break
            yield bytes(memoryview(self._buffer)[start + HEADER.size : end])
            start = end
        del self._buffer[:start]


class Owner(Protocol):
    """Receives a child's messages and its end; called on the loop."""

    def child_said(self, frame: bytes) -> None: ...

    def child_ended(self) -> None:
        """Once, whether it was stopped or died."""
        ...


class Child(asyncio.Protocol):
    """The kernel's end of a child process. `start` and `stop` belong to one loop."""

    def __init__(self, module: str, environment: Mapping[str, str], owner: Owner) -> None:
        self._command = [sys.executable, "-P", "-m", module]
        self._environment = {**os.environ, **import_path(), **environment, MARK: mark()}
        self._owner = owner
        self._frames = Frames()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed in stop
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        assert self._process is not None, "start first"
        return self._process.pid

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # milliseconds: fork and exec
                [*self._command, str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    def send(self, frame: bytes) -> None:
        """Never blocks; silently nothing once the child has ended, as `child_ended` reports."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEADER.pack(len(frame)) + frame)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Return when the process is gone and reaped. Safe to call twice."""
        if self._transport is not None:
            self._transport.abort()  # the child's reader sees the end and ends the process
        if self._process is not None:
            await in_own_thread(partial(_reap, self._process, grace_s))
        self._output.close()

    async def exit_status(self) -> int:
        """Return the dead child's exit status, reaping it."""
        await self._ended.wait()
        assert self._process is not None
        return await in_own_thread(partial(_reap, self._process, 5.0))

    def last_lines(self) -> str:
        """Return the last lines that it wrote to its output and error streams."""
        if self._output.closed:
            return ""
        fd = self._output.fileno()
        start = max(0, os.fstat(fd).st_size - 65_536)
        # pread, for the child writes at the offset that a seek here would move
        text = os.pread(fd, 65_536, start).decode(errors="replace").replace("\r", "\n")
        return "\n".join([line for line in text.splitlines() if line.strip()][-LAST_LINES:])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's only behaves as one

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._owner.child_said(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended.set()
        self._owner.child_ended()


def _reap(process: subprocess.Popen[bytes], grace_s: float) -> int:
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def import_path() -> dict[str, str]:
    """Lets the child import this very package where it is not installed, as in a checkout."""
    root = Path(llmserve.__file__).resolve().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{others}" if others else str(root)}


class ParentLink:
    """The child process's end of the link.

    Frames come in by `inbox`; `send` takes any thread and never blocks."""

    def __init__(self, fd: int, decode: Callable[[bytes], object]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._decode = decode
        self._parent = os.getppid()
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Callable[[], bytes] | threading.Event] = (
            queue.SimpleQueue()
        )
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"link{work.__name__}", daemon=True).start()

    def send(self, encode: Callable[[], bytes]) -> None:
        """`encode` is called in the sender's thread."""
        self._outbox.put(encode)

    def flush(self, timeout_s: float) -> None:
        """Wait until what was sent so far has left, for a last message before the end."""
        done = threading.Event()
        self._outbox.put(done)
        done.wait(timeout_s)

    def _read(self) -> None:
        frames, poll = Frames(), select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            while True:
                ready = poll.poll(PARENT_POLL_S * 1000)
                # A process that the kernel forked may hold its end of the socket open after it.
                if os.getppid() != self._parent:
                    break
                if not ready:
                    continue
                data = self._socket.recv(1 << 16)
                if not data:
                    break
                for frame in frames.feed(data):
                    self.inbox.put(self._decode(frame))
        except ConnectionError:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader sees the same end, and ends the process
            while True:
                item = self._outbox.get()
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                frame = item()
                self._socket.sendall(HEADER.pack(len(frame)) + frame)
