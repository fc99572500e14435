"""What closing gives back, on real processes. NVML's part is on a stand-in: there is no GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

import llmserve
from llmserve.core.clock import MonotonicClock, VirtualClock
from llmserve.entrypoints.session import resources, shutdown_report
from llmserve.entrypoints.session.resources import SessionResources
from llmserve.entrypoints.session.shutdown_report import MIB, MemoryStayed, Proof, ShutdownReport
from llmserve.observe.process_memory import MemoryScales

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = bytearray(int(sys.argv[1]) << 20)
print("ready", flush=True)
signal.pause()
"""


@contextmanager
def stubborn(mib: int) -> Iterator[psutil.Process]:
    """A process that holds memory and does not end when it is asked to."""
    command = [sys.executable, "-c", STUBBORN, str(mib)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield psutil.Process(process.pid)
        finally:
            process.kill()


STAYS: dict[str, Any] = {"by": psutil.Process.terminate, "patience_s": 0.5}
"""For `close`: what the stubborn one does not hear, for who could not be killed."""


def close(pid: int, **options: Any) -> ShutdownReport:
    clock = MonotonicClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutdown_report, "_GRACE_S", 0.1)  # it never ends by itself
        return Proof((pid,), None, clock, **{"patience_s": 60, **options}).freed(8000, clock.now())


class NoGpu:
    NVMLError = OSError

    def nvmlInit(self) -> None:
        raise OSError


class Card:
    """One GPU: `used` over time, one figure a question, and who holds how much."""

    NVMLError = OSError

    def __init__(self, used: list[int], processes: dict[int, int] | None) -> None:
        self._used = used
        self._processes = processes
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=self._used.pop(0) if len(self._used) > 1 else self._used[0])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        if self._processes is None:
            raise OSError("not supported")
        held = self._processes.items()
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in held]


def test_a_process_that_ends_is_weighed_before_and_gone_after() -> None:
    with stubborn(100) as child:
        freed = close(child.pid, scales=MemoryScales(nvml=NoGpu()))
        assert freed.processes[child.pid] > 100 * MIB
        assert freed.left == ()
        assert freed.stayed is None
        line = next(line for line in str(freed).splitlines() if str(child.pid) in line)
        assert line.split()[-1] == "gone"
        assert f"engine {child.pid} (" in freed._repr_html_()


def test_a_process_that_cannot_be_ended_is_named_with_what_it_holds_and_the_cure() -> None:
    with stubborn(100) as child:
        freed = close(child.pid, scales=MemoryScales(nvml=NoGpu()), **STAYS)
        assert freed.left == (child.pid,)
        assert freed.stayed is not None
        assert f"pid {child.pid} (" in freed.stayed
        assert f"kill -9 {child.pid}" in freed.stayed
        assert f"still there: {child.pid}" in str(freed)


def test_a_small_remainder_is_told_and_not_warned_of() -> None:
    with stubborn(1) as child:
        freed = close(child.pid, scales=MemoryScales(nvml=NoGpu()), **STAYS)
        assert freed.left == (child.pid,)
        assert freed.stayed is None


def test_the_kernels_own_memory_is_told_and_not_judged() -> None:
    held = b"x" * (100 * MIB)
    freed = close(0, scales=MemoryScales(nvml=NoGpu()))
    assert freed.after.kernel is not None
    assert freed.after.kernel.resident > len(held)
    assert freed.stayed is None
    assert freed.processes == {}


def test_descendants_of_an_engine_process_are_ended_and_weighed_too() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], '1'])"
    command = [sys.executable, "-c", code, STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        freed = close(parent.pid, scales=MemoryScales(nvml=NoGpu()))
        assert len(freed.processes) == 2
        assert freed.left == ()


def test_a_gpu_is_weighed_by_process_where_the_driver_tells() -> None:
    with stubborn(1) as child:
        card = Card([900 * MIB], {child.pid: 800 * MIB, 1: 100 * MIB})
        freed = close(child.pid, scales=MemoryScales(nvml=card), **STAYS)
        assert freed.before.engine[0].device == 800 * MIB
        assert freed.stayed is not None
        assert "800 MiB" in freed.stayed
        assert "800 MiB on the GPU" in str(freed)
        assert "all who use it" not in str(freed)
        assert card.open == 0


@pytest.mark.parametrize("processes", [None, {4_000_000: 800 * MIB}])
def test_where_it_does_not_the_devices_own_figure_is_told_and_labelled(
    processes: dict[int, int] | None,
) -> None:
    """As in a container: the driver knows the process by another pid, or tells of none."""
    with stubborn(1) as child:
        card = Card([900 * MIB, 100 * MIB], processes)
        freed = close(child.pid, scales=MemoryScales(nvml=card))
        assert freed.before.engine[0].device is None
        assert freed.gpu_bytes == 800 * MIB
        (line,) = (line for line in str(freed).splitlines() if "all who use it" in line)
        assert line.split()[-4:] == ["900", "MiB", "100", "MiB"]


@pytest.mark.parametrize(("stays", "after"), [(False, "gone"), (True, "unknown")])
def test_there_the_engines_own_count_is_told_beside_it(stays: bool, after: str) -> None:
    with stubborn(1) as child:
        card = Card([900 * MIB, 100 * MIB], None)
        how = STAYS if stays else {}
        freed = close(child.pid, scales=MemoryScales(nvml=card), own_count=700 * MIB, **how)
        (line,) = (line for line in str(freed).splitlines() if "own count" in line)
        assert line.split()[-3:] == ["700", "MiB", after]


def test_an_engine_is_asked_for_its_own_count_where_it_has_one_and_may_fail_to_tell() -> None:
    session = llmserve.serve(engine="torch", threads=1)
    engine: Any = session.service.engine
    assert session.runtime.call(engine.device_bytes()) is None
    engine._info = msgspec.structs.replace(engine.info, device="cuda")
    assert session.runtime.call(engine.device_bytes()) == 0, "the child has not answered"
    assert session.close().before.own_count == 0


def test_it_waits_for_a_driver_that_takes_memory_back_late() -> None:
    clock = MonotonicClock()
    card = Card([900 * MIB, 900 * MIB, 500 * MIB, 100 * MIB], None)
    proof = Proof((), 100 * MIB, clock, scales=MemoryScales(nvml=card), patience_s=60)
    assert proof.freed(8000, clock.now()).gpu_bytes == 800 * MIB


def test_a_session_warns_in_the_cell_that_closes_it_once() -> None:
    """Its engine names a process of ours, which it does not end; the house ends it by asking."""
    with stubborn(100) as child, pytest.MonkeyPatch.context() as patch:
        session = llmserve.serve(engine="simulator")
        engine: Any = session.service.engine
        engine.info = msgspec.structs.replace(engine.info, pids=(child.pid,))
        house: SessionResources = session._resources
        patch.setattr(house, "end_by", psutil.Process.terminate)
        patch.setattr(resources, "Proof", partial(Proof, patience_s=0.5))
        with pytest.warns(MemoryStayed, match=f"pid {child.pid}") as caught:
            session.close()
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert session.close().left == (child.pid,)


def test_a_torch_engines_memory_is_all_given_back() -> None:
    session = llmserve.serve(engine="torch", threads=1)
    (pid,) = session.info.pids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freed = session.close()
    assert freed.processes[pid] > 64 * MIB
    assert freed.left == ()
    assert not psutil.pid_exists(pid)
    assert str(os.getpid()) not in str(freed).splitlines()[1]


def test_patience_with_a_driver_has_an_end() -> None:
    clock = VirtualClock()
    card = Card([900 * MIB], None)
    real = clock.now

    def now() -> float:
        clock.advance(1.0)
        return real()

    clock.now = now  # type: ignore[method-assign]  # each look at it takes a second
    freed = Proof((), 100 * MIB, clock, scales=MemoryScales(nvml=card)).freed(8000, 0.0)
    assert freed.gpu_bytes == 0


def test_killing_is_what_a_house_does_unless_told_otherwise() -> None:
    with stubborn(1) as child:
        close(child.pid, scales=MemoryScales(nvml=NoGpu()))
        assert child.wait(60) in (None, -signal.SIGKILL)
