"""Samples of the device: a GPU by NVML, or the host where there is no GPU, labelled as such.

Nothing is made up: what the platform does not report is None, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from llmserve.core.clock import Clock
from llmserve.core.events import DeviceSampled
from llmserve.engines.process.processes import with_descendants

_CGROUP = Path("/sys/fs/cgroup")
_FAMILY_S = 20.0
"""Whose children are ours is looked up so often, for it means reading of every process there is:
twice a second it took 4 % of the kernel's time, every five seconds still 1 %."""


class DeviceSampler:
    """`sample` may take milliseconds (NVML, /proc): call it off the loop, one call at a time.

    `pids` names this session's processes anew at each sample; their children count too, new ones
    from some seconds on. `nvml` is the module `pynvml` or one like it; None looks for it.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        clock: Clock,
        *,
        nvml: Any | None = None,
        cgroup: Path = _CGROUP,
    ) -> None:
        self._pids = pids
        self._clock = clock
        self._cgroup = cgroup
        self._nvml: Any = find_nvml() if nvml is None else nvml
        self._handles: list[Any] | None = None
        self._cpu_asked = False
        self._roots: tuple[int, ...] = ()
        self._family: tuple[psutil.Process, ...] = ()
        self._looked = -math.inf

    def sample(self) -> list[DeviceSampled]:
        """Take one sample per GPU; without a GPU, one of the host."""
        self._look()
        pids = {process.pid for process in self._family}
        samples = [s for h in self._gpus() if (s := self._gpu(h, pids)) is not None]
        return samples or [self._host()]

    def close(self) -> None:
        """Give NVML back. Safe to call twice, and without a GPU."""
        if self._handles:
            self._ask(self._nvml.nvmlShutdown)
        self._handles = None

    def _look(self) -> None:
        """Who we are now."""
        roots, now = tuple(self._pids()), self._clock.now()
        if roots != self._roots or now - self._looked >= _FAMILY_S:
            self._roots, self._looked = roots, now
            self._family = tuple(with_descendants(roots))

    def _gpus(self) -> list[Any]:
        """NVML's handles; found at the first call, which starts NVML."""
        if self._handles is None:
            self._handles = []
            nvml = self._nvml
            if nvml is not None:
                try:
                    nvml.nvmlInit()
                    count = nvml.nvmlDeviceGetCount()
                    self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
                except nvml_errors(nvml):
                    self._handles = []
        return self._handles

    def _gpu(self, handle: Any, family: set[int]) -> DeviceSampled | None:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is None:
            return None
        name = self._ask(nvml.nvmlDeviceGetName, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        celsius = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return DeviceSampled(
            t=self._clock.now(),
            kind="gpu",
            name=name.decode() if isinstance(name, bytes) else str(name or "GPU"),
            used_bytes=memory.used,
            total_bytes=memory.total,
            own_bytes=self._own_gpu_bytes(handle, family),
            utilization=None if rates is None else rates.gpu / 100,
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=None if celsius is None else float(celsius),
        )

    def _own_gpu_bytes(self, handle: Any, family: set[int]) -> int | None:
        """None where none of our pids is listed: in a container the driver knows them by others."""
        processes = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        own = [p.usedGpuMemory for p in processes if p.pid in family]
        return sum(own) if own and None not in own else None

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any | None:
        try:
            return question(*arguments)
        except nvml_errors(self._nvml):
            return None

    def _host(self) -> DeviceSampled:
        memory = psutil.virtual_memory()
        used, total = memory.total - memory.available, memory.total
        limited = _cgroup_memory(self._cgroup)
        if limited is not None and limited[1] < total:
            used, total = limited
        percent = psutil.cpu_percent(interval=None)
        known, self._cpu_asked = self._cpu_asked, True  # the first answer is of no interval
        return DeviceSampled(
            t=self._clock.now(),
            kind="host",
            name="host memory",
            used_bytes=used,
            total_bytes=total,
            own_bytes=_resident(self._family),
            utilization=percent / 100 if known else None,
        )


def find_nvml() -> Any | None:
    """The module of nvidia-ml-py, where it is."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def nvml_errors(nvml: Any) -> tuple[type[Exception], ...]:
    """What it raises: the driver's errors, and one that is none of them where the driver is too old
    for a function."""
    return nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)


def _resident(processes: Iterable[psutil.Process]) -> int | None:
    """Resident bytes together; pages that they share count in each. None when none answers."""
    sizes = []
    for process in processes:
        try:
            sizes.append(process.memory_info().rss)
        except psutil.Error:
            continue
    return sum(sizes) if sizes else None


def _cgroup_memory(root: Path) -> tuple[int, int] | None:
    """Bytes used and allowed in this container; None where there is no limit or no cgroup v2.

    Page cache that can be dropped at once is not in use, as in psutil's own `available`.
    """
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return used - int(stat.get("inactive_file", 0)), int(limit)
    except (OSError, ValueError):  # "max" is no number: no limit
        return None
