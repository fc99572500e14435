"""Work in a thread of its own, which also runs while the interpreter is on its way out: executors
take no work then, and a kernel that is restarted closes its sessions just then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a new thread. When cancelled, its result is not waited for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]  # None only where T allows it
        else:
            result.set_exception(error)

    def main() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # raised in the waiting caller
            failure = error
        with suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=main, name="llmserve-work", daemon=True).start()
    return await result


def waited_for(work: Callable[[], T]) -> T:
    """As above, for a caller that may block. An interrupt ends the wait, and not the work."""
    done: list[T] = []
    failed: list[BaseException] = []

    def main() -> None:
        try:
            done.append(work())
        except BaseException as error:  # raised in the waiting caller
            failed.append(error)

    thread = threading.Thread(target=main, name="llmserve-work", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
