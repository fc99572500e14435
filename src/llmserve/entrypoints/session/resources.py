"""What one session holds of the machine, opened in order and given back in the other.

It knows nothing of the Session, so that a session nobody holds can be closed by the collector.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

import psutil

from llmserve.core.clock import Clock
from llmserve.engines.base import ReportsProgress
from llmserve.entrypoints.http.server import HttpServer
from llmserve.entrypoints.session.shutdown_report import Proof, ShutdownReport, device_used
from llmserve.entrypoints.session.switches import Switches
from llmserve.observe.gpu import DeviceSampler
from llmserve.serving.interpreter import WhileServing
from llmserve.serving.runtime import Runtime
from llmserve.serving.service import Service

log = logging.getLogger(__name__)

_SAMPLE_S = 0.5
_CLOSE_TIMEOUT_S = 30.0
_COUNT_TIMEOUT_S = 2.0


class SessionResources:
    """What a session holds: `open` starts it, `close` gives it back and reports it in `freed`."""

    def __init__(
        self,
        runtime: Runtime,
        service: Service,
        server: HttpServer,
        clock: Clock,
        switches: Switches,
    ) -> None:
        self._runtime = runtime
        self._service = service
        self._server = server
        self._clock = clock
        self._switches = switches
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = False
        self._closed = threading.Event()
        self._while_serving: WhileServing | None = None
        self._sampling: asyncio.Task[None] | None = None
        self.on_close: list[Callable[[], None]] = []
        self.after_close: list[Callable[[], None]] = []
        """Called when nothing runs any more, whatever happened before."""
        self.freed = ShutdownReport()
        self.end_by: Callable[[psutil.Process], None] = psutil.Process.kill
        self._device_at_open: int | None = None

    def open(self, engine: str) -> None:
        """Start everything and return when requests can come. engine: its name, for the progress
        line."""
        self._device_at_open = device_used()
        self._runtime.call(self._open(), progress=lambda: self._starting(engine))
        wanted = self._switches
        self._while_serving = WhileServing(wanted.switch_interval_s, wanted.gc_threshold)

    def _starting(self, engine: str) -> str:
        own = self._service.engine
        stage = own.busy_with if isinstance(own, ReportsProgress) else ""
        return f"starting {engine}" + (f", {stage}" if stage else "")

    def close(self) -> None:
        """In a thread of its own: an interrupt ends the wait for it and leaves nothing behind, and
        the collector may call this anywhere, on the loop's thread too. Call it again to wait."""
        if os.getpid() != self._pid:
            return  # a fork of the process that serves: what it would end is not its own
        try:
            self._call_back()
        finally:
            self._begin_closing()
        if not self._runtime.here:
            self._closed.wait()  # not `join`: interrupted, that takes the thread for ended

    def _call_back(self) -> None:
        while self.on_close:
            try:
                self.on_close.pop(0)()
            except Exception:  # closing goes on whatever a view does
                log.exception("a close callback raised")

    def _begin_closing(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            try:
                threading.Thread(target=self._end, name="llmserve-close").start()
            except RuntimeError:  # newer Pythons start no thread while they end
                self._end()

    def _end(self) -> None:
        try:
            self._give_back()
        finally:
            self._closed.set()

    def _give_back(self) -> None:
        started = self._clock.now()
        proof = Proof(
            self._service.pids, self._device_at_open, self._clock,
            own_count=self._own_count(), by=self.end_by,
        )  # fmt: skip
        try:
            self._runtime.call(self._close(), timeout=_CLOSE_TIMEOUT_S)
        except Exception:
            log.exception("closing did not end in order; ending the engine processes")
        finally:
            self._runtime.close()
            if self._while_serving is not None:
                self._while_serving.release()
            for callback in self.after_close:
                callback()
        self.freed = proof.freed(self._server.port, started)
        if (stayed := self.freed.stayed) is not None:
            log.warning(stayed)

    def _own_count(self) -> int | None:
        """What the engine says it holds on GPUs, where it can say so, at once."""
        try:
            return self._runtime.call(self._service.device_bytes(), timeout=_COUNT_TIMEOUT_S)
        except Exception as error:  # closing goes on without it
            log.info("the engine did not say what it holds: %r", error)
            return None

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
        try:
            while True:
                samples = await asyncio.to_thread(sampler.sample)
                self._service.publisher.devices_sampled(samples)
                await asyncio.sleep(_SAMPLE_S)
        finally:
            sampler.close()
