from __future__ import annotations

import asyncio
import importlib.util
import threading

import pytest

from llmserve.runtime import Runtime


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
    ended: list[str] = []

    async def work(name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            ended.append(f"{name} done")
        except asyncio.CancelledError:
            ended.append(f"{name} cancelled")
            raise

    other = runtime.submit(work("other", 0.05))
    with pytest.raises(TimeoutError):
        runtime.call(work("slow", 60), timeout=0.01)
    other.result(5)
    runtime.close()
    assert sorted(ended) == ["other done", "slow cancelled"]


def test_calling_from_the_loop_itself_is_an_error_and_no_deadlock() -> None:
    runtime = Runtime()

    async def nested() -> None:
        runtime.call(answer())

    with pytest.raises(RuntimeError, match="await the async form"):
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


def test_the_loop_is_uvloops_where_that_is_installed() -> None:
    there = importlib.util.find_spec("uvloop") is not None
    runtime = Runtime()
    assert (type(runtime.loop).__module__.partition(".")[0] == "uvloop") == there
    assert runtime.call(answer()) == 42
    runtime.close()
