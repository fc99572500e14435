"""Clients that leave while their answer is made: the work on it is cancelled at once.

Our own `Connection` says so by a call, in the scope's extensions. Under any other server a task
waits in `receive` for it, which costs two tasks' switches for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Scope

from llmserve.entrypoints.http.errors import ClientGone

_EXTENSION = "llmserve.exchange"


class Exchange:
    """What our connection tells of one request while it is answered."""

    __slots__ = ("_then", "body_is_here", "left", "write")

    def __init__(self, *, body_is_here: bool) -> None:
        self.body_is_here = body_is_here
        """All of the body has come, so that to read it waits for nothing."""
        self.left = False
        """The client is gone."""
        self.write: Callable[[bytes], bool] | None = None
        """Sends more of the body of an answer that has begun, at once; False where the client does
        not keep up with what was sent."""
        self._then: Callable[[], object] | None = None

    def enter(self, scope: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), _EXTENSION: self}

    def leave(self) -> None:
        """Note that the client is gone."""
        self.left = True
        if self._then is not None:
            self._then()

    def when_left(self, then: Callable[[], object] | None) -> None:
        """Call `then` when the client leaves; None takes that back."""
        self._then = then


def exchange_of(scope: Scope) -> Exchange | None:
    """None under another server than our own."""
    found: Exchange | None = scope.get("extensions", {}).get(_EXTENSION)
    return found


async def unless_gone(scope: Scope, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it is done or the client leaves; then it is cancelled. ClientGone says so.

    Call it with the body read to its end: what `receive` returns next is that the client left.
    """
    exchange, watcher = exchange_of(scope), None
    if exchange is None:
        exchange = Exchange(body_is_here=True)
        watcher = asyncio.create_task(_watch(receive, exchange))
    elif exchange.left:
        work.close()
        raise ClientGone
    task = asyncio.current_task()
    assert task is not None  # routes run in tasks
    exchange.when_left(task.cancel)
    try:
        await work
    except asyncio.CancelledError:
        if exchange.left and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        exchange.when_left(None)
        if watcher is not None:
            watcher.cancel()


async def _watch(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.leave()
