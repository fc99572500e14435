"""What processes hold of memory, one by one: resident by the system, on a GPU by NVML.

In a container NVML knows processes by pids that are not ours: then only the device's own figure
is known, of all who use it together, and a process's share of it is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from llmserve.engines.process.processes import has_ended
from llmserve.observe.gpu import find_nvml, nvml_errors


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    pid: int
    what: str
    """The process's own name for itself."""
    resident: int
    device: int | None = None
    """Bytes on GPUs; None where NVML does not report this process."""


@dataclass(frozen=True, slots=True)
class MemoryReadings:
    engine: tuple[ProcessMemory, ...] = ()
    kernel: ProcessMemory | None = None
    device_used: int | None = None
    """Bytes in use on all GPUs, by whomever; None where there is no GPU."""
    own_count: int | None = None
    """Bytes on GPUs as the engine itself counts them; None where it was not asked."""

    def of(self, pid: int) -> ProcessMemory | None:
        return next((one for one in self.engine if one.pid == pid), None)


class MemoryScales:
    """`nvml` is the module `pynvml` or one like it; None looks for it."""

    def __init__(self, *, nvml: Any | None = None) -> None:
        self._nvml: Any = find_nvml() if nvml is None else nvml
        self._devices: list[Any] = []
        if self._nvml is not None and self._ask(self._nvml.nvmlInit) is not _NOT_KNOWN:
            count = self._ask(self._nvml.nvmlDeviceGetCount)
            found = [
                self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
                for index in range(0 if count is _NOT_KNOWN else count)
            ]
            self._devices = [device for device in found if device is not _NOT_KNOWN]

    def weigh(self, processes: Iterable[psutil.Process]) -> MemoryReadings:
        """Weigh the processes that still live, and this one. Takes milliseconds."""
        by_pid = self._by_pid()
        weighed = (_weigh(process, by_pid) for process in processes)
        kernel = _weigh(psutil.Process(os.getpid()), by_pid)
        return MemoryReadings(
            tuple(one for one in weighed if one is not None), kernel, self._used()
        )

    def close(self) -> None:
        """Give NVML back. Safe to call twice, and without a GPU."""
        if self._devices:
            self._ask(self._nvml.nvmlShutdown)
        self._devices = []

    def _by_pid(self) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for device in self._devices:
            answer = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, device)
            for one in () if answer is _NOT_KNOWN else answer:
                if one.usedGpuMemory is not None:
                    sizes[one.pid] = sizes.get(one.pid, 0) + one.usedGpuMemory
        return sizes

    def _used(self) -> int | None:
        answer = [self._ask(self._nvml.nvmlDeviceGetMemoryInfo, device) for device in self._devices]
        known = [memory.used for memory in answer if memory is not _NOT_KNOWN]
        return sum(known) if known else None

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except nvml_errors(self._nvml):
            return _NOT_KNOWN


_NOT_KNOWN = object()


def _weigh(process: psutil.Process, by_pid: dict[int, int]) -> ProcessMemory | None:
    """None where it has ended."""
    if has_ended(process):
        return None
    try:
        resident = process.memory_info().rss
        return ProcessMemory(process.pid, process.name(), resident, by_pid.get(process.pid))
    except psutil.Error:
        return None
