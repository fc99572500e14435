"""A client that leaves ends the work for it, whichever server says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmserve.entrypoints.http.errors import ClientGone
from llmserve.entrypoints.http.leaving import Exchange, exchange_of, unless_gone


class Work:
    """Waits until it is let go, and notes how it ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ended = ""

    async def __call__(self) -> None:
        self.ended = "cancelled"
        await self.go.wait()
        self.ended = "done"


class Client:
    """Of our own connection (`ours`), or of any server: `receive` waits until it leaves."""

    def __init__(self, ours: bool) -> None:
        self.scope: dict[str, Any] = {}
        self._left = asyncio.Event()
        self._exchange = Exchange(body_is_here=True)
        if ours:
            self._exchange.enter(self.scope)

    async def receive(self) -> dict[str, str]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self._left.set()
        self._exchange.leave()


both = pytest.mark.parametrize("ours", [True, False], ids=["our connection", "another server"])


@both
def test_work_ends_with_the_client_that_it_is_for(ours: bool) -> None:
    async def story() -> None:
        client, work = Client(ours), Work()
        asyncio.get_running_loop().call_soon(client.leave)
        with pytest.raises(ClientGone):
            await unless_gone(client.scope, client.receive, work())
        assert work.ended == "cancelled"
        assert (task := asyncio.current_task()) is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # who left leaves no cancellation behind

    asyncio.run(story())


@both
def test_a_client_that_leaves_after_its_answer_cancels_nothing(ours: bool) -> None:
    async def story() -> None:
        client, work = Client(ours), Work()
        work.go.set()
        await unless_gone(client.scope, client.receive, work())
        assert work.ended == "done"
        client.leave()
        await asyncio.sleep(0)

    asyncio.run(story())


@both
def test_a_server_that_stops_is_not_taken_for_a_client_that_left(ours: bool) -> None:
    async def story() -> None:
        client, work = Client(ours), Work()
        task = asyncio.create_task(unless_gone(client.scope, client.receive, work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ended == "cancelled"

    asyncio.run(story())


def test_work_does_not_begin_for_a_client_that_is_gone() -> None:
    async def story() -> None:
        client, work = Client(ours=True), Work()
        client.leave()
        with pytest.raises(ClientGone):
            await unless_gone(client.scope, client.receive, work())
        assert work.ended == ""

    asyncio.run(story())


def test_what_another_extension_says_in_the_scope_stays() -> None:
    scope: dict[str, Any] = {"extensions": {"tls": {}}}
    exchange = Exchange(body_is_here=False)
    exchange.enter(scope)
    assert exchange_of(scope) is exchange
    assert scope["extensions"]["tls"] == {}
