"""What one session holds of the machine, opened in order and given back in the other.

It knows nothing of the Session, so that a session nobody holds can be closed by the collector.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from llmserve.clock import Clock
from llmserve.endpoint.server import Server
from llmserve.events import EventBus
from llmserve.observe.gpu import DeviceSampler
from llmserve.runtime import FastSwitching, Runtime
from llmserve.service import Service

log = logging.getLogger(__name__)

_SAMPLE_S = 0.5
_CLOSE_TIMEOUT_S = 30.0
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Switches:
    switch_interval_s: float | None


@dataclass(frozen=True, slots=True)
class Freed:
    """What closing gave back, measured. `str` of it is a sentence."""

    processes: dict[int, int] = field(default_factory=dict)
    """Engine process to the bytes resident before; all of them have ended but `left`."""
    left: tuple[int, ...] = ()
    """Engine processes that are still there: a defect, with their pids."""
    gpu_bytes: int | None = None
    """Device memory that came back; None where there is no GPU."""
    port: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        memory = sum(self.processes.values()) / _MIB
        count = len(self.processes)
        parts = [f"{memory:.0f} MiB in {count} engine process{'es' * (count != 1)}"] * bool(count)
        if self.gpu_bytes is not None:
            parts.append(f"{self.gpu_bytes / _MIB:.0f} MiB of device memory")
        parts += [f"port {self.port}", "the serving thread"]
        tail = f"; still there: {', '.join(map(str, self.left))}" if self.left else ""
        return f"Freed {', '.join(parts[:-1])} and {parts[-1]} in {self.seconds:.1f} s{tail}."


class House:
    """`open` returns when requests can come; `close` when all is given back, with `freed`."""

    def __init__(
        self,
        runtime: Runtime,
        service: Service,
        server: Server,
        bus: EventBus,
        clock: Clock,
        switches: Switches,
    ) -> None:
        self._runtime = runtime
        self._service = service
        self._server = server
        self._bus = bus
        self._clock = clock
        self._interval = switches.switch_interval_s
        self._switching: FastSwitching | None = None
        self._sampling: asyncio.Task[None] | None = None
        self.on_close: list[Callable[[], None]] = []
        self.after_close: list[Callable[[], None]] = []
        """Called when nothing runs any more, whatever happened before."""
        self.freed = Freed()

    def open(self) -> None:
        self._runtime.call(self._open())
        if self._interval is not None:
            self._switching = FastSwitching(self._interval)

    def close(self) -> None:
        started = self._clock.now()
        for callback in self.on_close:
            try:
                callback()
            except Exception:  # closing goes on whatever a view does
                log.exception("a close callback raised")
        before = self._resident()
        gpu_before = self._gpu_used()
        try:
            self._runtime.call(self._close(), timeout=_CLOSE_TIMEOUT_S)
        except Exception:
            log.exception("closing did not end in order; ending the engine processes")
        finally:
            self._runtime.close()
            if self._switching is not None:
                self._switching.release()
            for callback in self.after_close:
                callback()
        left = _end(before)
        gpu_after = self._gpu_used()
        self.freed = Freed(
            processes=before,
            left=left,
            gpu_bytes=None if gpu_before is None else max(0, gpu_before - (gpu_after or 0)),
            port=self._server.port,
            seconds=self._clock.now() - started,
        )

    async def _open(self) -> None:
        await self._service.start()
        await self._server.start()
        sampler = DeviceSampler(lambda: (os.getpid(), *self._service.pids), self._clock)
        self._sampling = asyncio.create_task(self._sample(sampler))

    async def _close(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
        await self._service.stop()
        await self._server.stop()

    async def _sample(self, sampler: DeviceSampler) -> None:
        while True:
            for sample in await asyncio.to_thread(sampler.sample):
                self._bus.publish(sample)
            await asyncio.sleep(_SAMPLE_S)

    def _pids(self) -> tuple[int, ...]:
        try:
            return self._service.pids
        except Exception:  # an engine that never started has no info
            return ()

    def _resident(self) -> dict[int, int]:
        resident = {}
        for pid in self._pids():
            try:
                resident[pid] = psutil.Process(pid).memory_info().rss
            except psutil.Error:
                continue
        return resident

    def _gpu_used(self) -> int | None:
        sampler = DeviceSampler(self._pids, self._clock)
        try:
            samples = sampler.sample()
        except Exception:  # a report is no reason to fail closing
            return None
        finally:
            sampler.close()
        gpus = [sample.used_bytes for sample in samples if sample.kind == "gpu"]
        return sum(gpus) if gpus else None


def _end(pids: dict[int, int]) -> tuple[int, ...]:
    """Wait for the processes, end those that stay, and return any that outlive even that."""
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=2)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(alive, timeout=2)
    return tuple(process.pid for process in alive)
