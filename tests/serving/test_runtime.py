from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import threading

import pytest

from llmserve.serving.runtime import Runtime


async def answer() -> int:
    return 42


def test_calls_from_any_thread_run_on_the_one_loop() -> None:
    runtime = Runtime()
    names: list[str] = []

    async def where() -> None:
        names.append(threading.current_thread().name)

    threads = [threading.Thread(target=runtime.call, args=(where(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runtime.close()
    assert names == ["llmserve"] * 8


def test_a_call_works_inside_a_running_loop_of_another_thread() -> None:
    runtime = Runtime()

    async def cell() -> int:
        return runtime.call(answer())

    assert asyncio.run(cell()) == 42
    runtime.close()


def test_a_timed_out_call_cancels_its_work_only() -> None:
    runtime = Runtime()
    gate = asyncio.Event()

    async def other() -> int:
        await gate.wait()
        return 42

    async def others() -> int:
        gate.set()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return len((await asyncio.wait(tasks))[0])

    going_on = runtime.submit(other())
    with pytest.raises(TimeoutError):
        runtime.call(asyncio.sleep(3600), timeout=0.01)
    assert runtime.call(others(), timeout=60) <= 2
    assert going_on.result(60) == 42
    runtime.close()


def test_calling_from_the_loop_itself_is_an_error_and_no_deadlock() -> None:
    runtime = Runtime()

    async def nested() -> None:
        runtime.call(answer())

    with pytest.raises(RuntimeError, match="await the async method"):
        runtime.call(nested())
    runtime.close()


def test_closing_twice_and_calling_after_are_safe_and_clear() -> None:
    runtime = Runtime()
    runtime.close()
    runtime.close()
    assert not runtime.alive
    with pytest.raises(RuntimeError, match="closed"):
        runtime.call(answer())


def test_closing_cancels_what_still_runs() -> None:
    runtime = Runtime()
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    future = runtime.submit(forever())
    runtime.call(asyncio.sleep(0))
    runtime.close()
    assert cancelled.is_set()
    assert future.cancelled()


def test_what_is_submitted_as_the_loop_stops_has_an_end_too() -> None:
    runtime = Runtime()
    late: list[concurrent.futures.Future[int]] = []

    async def stop() -> None:
        runtime.loop.stop()
        late.append(runtime.submit(answer()))  # its turn would be the next one

    runtime.submit(stop()).result(60)
    assert not concurrent.futures.wait(late, 60).not_done


def test_an_interrupt_while_it_begins_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = threading.Thread.start, list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        begun.append(thread)
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runtime()
    begun[0].join(60)
    assert not begun[0].is_alive()


@pytest.mark.parametrize("turn", range(10))
def test_who_calls_while_other_threads_close_is_answered_or_told(turn: int) -> None:
    runtime, called = Runtime(), threading.Event()
    ends: list[Exception] = []

    def call() -> None:
        try:
            while True:
                runtime.call(answer(), timeout=60)
                called.set()
        except (RuntimeError, concurrent.futures.CancelledError) as error:
            ends.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    closers = [threading.Thread(target=runtime.close) for _ in range(2)]
    for thread in callers:
        thread.start()
    assert called.wait(60)
    for thread in closers:
        thread.start()
    for thread in (*callers, *closers):
        thread.join()
    assert len(ends) == 4
    assert runtime.loop.is_closed()


def test_the_loop_is_uvloops_where_that_is_installed() -> None:
    there = importlib.util.find_spec("uvloop") is not None
    runtime = Runtime()
    assert (type(runtime.loop).__module__.partition(".")[0] == "uvloop") == there
    assert runtime.call(answer()) == 42
    runtime.close()
