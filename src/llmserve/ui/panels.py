"""What the dashboard draws: the one table that the series, the page and the picture share.

Columns are figures of the last `WINDOW_S` seconds: long enough for a p95, short enough to see
what a knob did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmserve.events import DeviceSampled
from llmserve.observe.stats import Snapshot

WINDOW_S = 5.0
_GIB = 2.0**30
_NONE = math.nan

COLUMNS = (
    "ttft_p50", "ttft_p95", "itl_p50", "itl_p95", "prompt_rate", "generated_rate",
    "running", "waiting", "memory_used", "memory_own",
)


@dataclass(frozen=True, slots=True)
class Line:
    column: str
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    id: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    step: bool = False
    """Counts hold until the next sample; they are not drawn as slopes."""
    total: float | None = None
    """What a full bar would be, where there is such a thing (memory of the device)."""


def panels(devices: tuple[DeviceSampled, ...]) -> tuple[Panel, ...]:
    return (
        Panel(
            "ttft", "Time to first token", "ms", (Line("ttft_p50", "p50"), Line("ttft_p95", "p95"))
        ),
        Panel("itl", "Between tokens", "ms", (Line("itl_p50", "p50"), Line("itl_p95", "p95"))),
        Panel(
            "throughput", "Throughput", "tokens/s",
            (Line("generated_rate", "generated"), Line("prompt_rate", "prompt")),
        ),
        Panel(
            "requests", "In flight", "requests",
            (Line("running", "running"), Line("waiting", "waiting")), step=True,
        ),
        _memory_panel(devices),
    )


def row(snapshot: Snapshot) -> list[float]:
    """The snapshot's figures in the order of COLUMNS, NaN where there is none."""
    used, own, _ = _memory(snapshot.devices)
    return [
        _ms(snapshot.ttft.p50), _ms(snapshot.ttft.p95), _ms(snapshot.itl.p50),
        _ms(snapshot.itl.p95), snapshot.prompt_tokens_per_s, snapshot.generated_tokens_per_s,
        snapshot.running, snapshot.waiting, used, own,
    ]


def _ms(seconds: float | None) -> float:
    return _NONE if seconds is None else 1e3 * seconds


def _shown(devices: tuple[DeviceSampled, ...]) -> list[DeviceSampled]:
    gpus = [device for device in devices if device.kind == "gpu"]
    return gpus or [device for device in devices if device.kind == "host"]


def _memory(devices: tuple[DeviceSampled, ...]) -> tuple[float, float, float]:
    """GiB used by all, by this session, and there; of the GPUs, else of the host."""
    shown = _shown(devices)
    if not shown:
        return _NONE, _NONE, _NONE
    own = [device.own_bytes for device in shown if device.own_bytes is not None]
    return (
        sum(device.used_bytes for device in shown) / _GIB,
        sum(own) / _GIB if own else _NONE,
        sum(device.total_bytes for device in shown) / _GIB,
    )


def _memory_panel(devices: tuple[DeviceSampled, ...]) -> Panel:
    shown = _shown(devices)
    _, _, total = _memory(devices)
    title = "Memory"
    if shown:
        title = "GPU memory" if shown[0].kind == "gpu" else "Host memory, no GPU"
    lines = (Line("memory_own", "this session"), Line("memory_used", "in use by all"))
    return Panel("memory", title, "GiB", lines, total=None if math.isnan(total) else total)
