"""What closing a session gave back, measured process by process, and what stayed."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psutil

from llmserve.core.clock import Clock
from llmserve.engines.process.processes import end, with_descendants
from llmserve.observe.process_memory import MemoryReadings, MemoryScales, ProcessMemory

MIB = 2**20
TOLERATED = 64 * MIB
"""More than this in engine processes that should have gone is reported by a warning."""

_GRACE_S = 2.0
_PATIENCE_S = 5.0
_DEVICE_POLL_S = 0.1
_CELL = 'style="text-align:left;padding:1px 14px 1px 0"'


class MemoryStayed(UserWarning):
    """Engine processes still hold memory after their session was closed."""


@dataclass(frozen=True, slots=True, repr=False)
class ShutdownReport:
    """`str` of it is a sentence and a table. The kernel is reported, not judged: it keeps the
    modules that it has imported."""

    before: MemoryReadings = field(default_factory=MemoryReadings)
    after: MemoryReadings = field(default_factory=MemoryReadings)
    port: int = 0
    seconds: float = 0.0

    @property
    def processes(self) -> dict[int, int]:
        """Engine process to the bytes resident before."""
        return {one.pid: one.resident for one in self.before.engine}

    @property
    def left(self) -> tuple[int, ...]:
        """Engine processes that are still there: a defect, with their pids."""
        return tuple(one.pid for one in self.after.engine)

    @property
    def gpu_bytes(self) -> int | None:
        """Device memory that came back, of all who use it; None where there is no GPU."""
        if self.before.device_used is None or self.after.device_used is None:
            return None
        return max(0, self.before.device_used - self.after.device_used)

    @property
    def stayed(self) -> str | None:
        """A sentence that names who still holds more than is tolerated, and the cure."""
        held = {
            one: one.resident if one.device is None else one.device for one in self.after.engine
        }
        if sum(held.values()) <= TOLERATED:
            return None
        who = ", ".join(f"pid {one.pid} ({one.what}) {n / MIB:.0f} MiB" for one, n in held.items())
        cure = f"kill -9 {' '.join(str(one.pid) for one in held)}"
        return f"engine processes outlived their session and hold memory: {who}; end them: {cure}"

    def __str__(self) -> str:
        rows = self._rows()
        if len(rows) == 1:  # of the kernel alone: there was no engine process
            return self._sentence()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (("", "before", "after"), *rows)
        ]  # fmt: skip
        return "\n".join([self._sentence(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self._rows()
        sentence = f"<div>{html.escape(self._sentence())}</div>"
        if len(rows) == 1:
            return sentence
        body = "".join(
            f"<tr>{''.join(f'<td {_CELL}>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in (("", "before", "after"), *rows)
        )
        return f"{sentence}<table>{body}</table>"

    def _sentence(self) -> str:
        memory, count = sum(self.processes.values()) / MIB, len(self.processes)
        parts = [f"{memory:.0f} MiB in {count} engine process{'es' * (count != 1)}"] * bool(count)
        if self.gpu_bytes is not None:
            parts.append(f"{self.gpu_bytes / MIB:.0f} MiB of device memory")
        parts += [f"port {self.port}", "the serving thread"]
        tail = f"; still there: {', '.join(map(str, self.left))}" if self.left else ""
        return f"Freed {', '.join(parts[:-1])} and {parts[-1]} in {self.seconds:.1f} s{tail}."

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [
            (f"engine {one.pid} ({one.what})", _amount(one), _amount(self.after.of(one.pid)))
            for one in self.before.engine
        ]
        known = any(one.device is not None for one in self.before.engine)
        if self.before.device_used is not None and not known:
            label = "GPU, all who use it (the driver does not say who)"
            rows.append((label, _mib(self.before.device_used), _mib(self.after.device_used)))
            if self.before.own_count is not None:
                after = "unknown" if self.left else "gone"
                rows.append(("GPU, by the engine's own count", _mib(self.before.own_count), after))
        kernel = "this kernel (it keeps what it imported)"
        return [*rows, (kernel, _amount(self.before.kernel), _amount(self.after.kernel))]


def _amount(one: ProcessMemory | None) -> str:
    if one is None:
        return "gone"
    resident = _mib(one.resident)
    return resident if one.device is None else f"{_mib(one.device)} on the GPU, {resident} resident"


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / MIB:,.0f} MiB"


class Proof:
    """Weighs an engine's processes before and after, and ends those that stay."""

    def __init__(
        self,
        pids: tuple[int, ...],
        device_at_open: int | None,
        clock: Clock,
        *,
        own_count: int | None = None,
        scales: MemoryScales | None = None,
        by: Callable[[psutil.Process], None] = psutil.Process.kill,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """device_at_open: bytes in use on the GPUs before the engine came. own_count: what the
        engine says it holds there. by: how processes that stay are ended. patience_s: for them,
        and then for the driver."""
        self._device_at_open = device_at_open
        self._clock = clock
        self._scales = scales or MemoryScales()
        self._by = by
        self._patience_s = patience_s
        self._processes = with_descendants(pids)
        self._before = replace(self._scales.weigh(self._processes), own_count=own_count)

    def freed(self, port: int, started: float) -> ShutdownReport:
        """Once all has come back, or patience has ended."""
        grace_s = min(_GRACE_S, self._patience_s)
        end(self._processes, grace_s, self._by, self._patience_s)
        after = self._after()
        self._scales.close()
        return ShutdownReport(self._before, after, port, self._clock.now() - started)

    def _after(self) -> MemoryReadings:
        """A driver may take a moment to take back what a process held that has ended."""
        deadline = self._clock.now() + self._patience_s
        while True:
            after = self._scales.weigh(self._processes)
            if self._is_back(after) or self._clock.now() >= deadline:
                return after
            time.sleep(_DEVICE_POLL_S)

    def _is_back(self, after: MemoryReadings) -> bool:
        if after.device_used is None or self._device_at_open is None:
            return True
        return after.device_used <= self._device_at_open + MIB


def came_back(before: MemoryReadings, after: MemoryReadings) -> str:
    """How much less is held now, on GPUs where there are some."""
    if before.device_used is not None and after.device_used is not None:
        return f"{max(0, before.device_used - after.device_used) / MIB:,.0f} MiB of device memory"
    held, left = (sum(one.resident for one in each.engine) for each in (before, after))
    return f"{max(0, held - left) / MIB:,.0f} MiB of the engine's processes"


def weighed(pids: tuple[int, ...]) -> MemoryReadings:
    """What these processes and their descendants hold now."""
    scales = MemoryScales()
    try:
        return scales.weigh(with_descendants(pids))
    finally:
        scales.close()


def device_used() -> int | None:
    """Bytes in use on all GPUs; None without one."""
    return weighed(()).device_used
