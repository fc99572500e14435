"""What the dashboard draws: the one table that the series, the page and the picture share.

Columns are figures of the last `WINDOW_S` seconds: long enough for a p95, short enough to see
what a knob did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmserve.core.events import DeviceSampled
from llmserve.core.quantities import duration, unit_of
from llmserve.dashboard.queue_figures import REASONS, SLOTS, QueueFigures
from llmserve.observe.stats import Snapshot

WINDOW_S = 5.0
_GIB = 2.0**30
_NONE = math.nan

COLUMNS = (
    "ttft_p50", "ttft_p95", "ttft_p99", "itl_p50", "itl_p95", "e2e_p50", "e2e_p95",
    "prompt_rate", "generated_rate", "finished", "goodput", "running", "waiting",
    *(f"waiting_t{i}" for i in range(SLOTS)), *(f"waiting_c{i}" for i in range(SLOTS)),
    *(f"refused_{reason}" for reason in REASONS),
    "token_fill", "seq_fill", "step_p50", "step_p95", "kv_use", "prefix_hits", "accepted",
    "memory_used", "memory_own", "utilization", "power", "temperature",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PanelLine:
    column: str
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    id: str
    title: str
    unit: str
    lines: tuple[PanelLine, ...]
    step: bool = False
    """Counts hold until the next sample; they are not drawn as slopes."""
    total: float | None = None
    """What a full bar would be, where there is such a thing (memory of the device)."""
    brief: bool = False
    """Is in the picture that stays in a notebook."""


def panels(
    devices: tuple[DeviceSampled, ...], flow: QueueFigures, slo_ms: float = 1000.0
) -> tuple[Panel, ...]:
    """The panels that have figures here: refusals once there are some, power of a GPU."""
    goodput = PanelLine("goodput", f"TTFT ≤ {duration(slo_ms / 1e3)}")
    made = [
        Panel("ttft", "Time to first token", "ms", _percentiles("ttft", 50, 95, 99), brief=True),
        Panel("itl", "Between tokens", "ms", _percentiles("itl", 50, 95), brief=True),
        Panel("e2e", "Whole requests", "ms", _percentiles("e2e", 50, 95)),
        Panel(
            "throughput", "Throughput", "tokens/s",
            (PanelLine("generated_rate", "generated"), PanelLine("prompt_rate", "prompt")),
            brief=True,
        ),
        Panel("goodput", "Goodput", "requests/s", (goodput, PanelLine("finished", "finished"))),
        Panel(
            "requests", "In flight", "requests",
            (PanelLine("running", "running"), PanelLine("waiting", "waiting")),
            step=True, brief=True,
        ),
        _waiting_panel(flow),
        Panel(
            "batch", "Batch fill", "%",
            (PanelLine("token_fill", "token budget"), PanelLine("seq_fill", "slots")),
            total=100, brief=True,
        ),
        Panel("step", "Engine step", "ms", _percentiles("step", 50, 95)),
        Panel(
            "kv", "KV cache", "%",
            (PanelLine("kv_use", "in use"), PanelLine("prefix_hits", "prefix hits")), total=100,
        ),
        _memory_panel(devices),
        *_device_panels(devices),
    ]  # fmt: skip
    if flow.reasons:
        refused = tuple(PanelLine(f"refused_{r}", r) for r in REASONS if r in flow.reasons)
        made.append(Panel("refused", "Refused", "requests/s", refused))
    if flow.speculates:
        accepted = (PanelLine("accepted", "drafts accepted"),)
        made.append(Panel("speculation", "Speculation", "%", accepted, total=100))
    return tuple(made)


def shown_in(panel: Panel, values: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
    """The unit in which a panel's figures are drawn, and they in it: times by the longest."""
    if panel.unit != "ms":
        return panel.unit, values
    highest = float(values.max(initial=0.0, where=np.isfinite(values)))
    unit = unit_of(highest / 1e3)
    return unit.name, (values * (1e-3 / unit.seconds)).astype(np.float32)


def row(snapshot: Snapshot, flow: Mapping[str, float]) -> list[float]:
    """Return the snapshot's figures in the order of COLUMNS, NaN where there is none."""
    used, own, _ = _memory(snapshot.devices)
    shown = _shown(snapshot.devices)
    steps = snapshot.step_time
    known: dict[str, float | None] = {
        "ttft_p50": _ms(snapshot.ttft.p50), "ttft_p95": _ms(snapshot.ttft.p95),
        "ttft_p99": _ms(snapshot.ttft.p99), "itl_p50": _ms(snapshot.itl.p50),
        "itl_p95": _ms(snapshot.itl.p95), "e2e_p50": _ms(snapshot.e2e.p50),
        "e2e_p95": _ms(snapshot.e2e.p95), "prompt_rate": snapshot.prompt_tokens_per_s,
        "generated_rate": snapshot.generated_tokens_per_s, "running": snapshot.running,
        "waiting": snapshot.waiting, "token_fill": _percent(snapshot.batch_fill),
        "seq_fill": _percent(snapshot.seq_fill), "step_p50": _ms(steps.p50),
        "step_p95": _ms(steps.p95), "kv_use": _percent(snapshot.kv_use),
        "memory_used": used, "memory_own": own,
        "utilization": _percent(_mean([d.utilization for d in shown])),
        "power": _total([d.power_w for d in shown]),
        "temperature": max((d.temperature_c for d in shown if d.temperature_c), default=None),
        **flow,
    }  # fmt: skip
    values = (known.get(column) for column in COLUMNS)
    return [_NONE if value is None else value for value in values]


def _percentiles(name: str, *ranks: int) -> tuple[PanelLine, ...]:
    return tuple(PanelLine(f"{name}_p{rank}", f"p{rank}") for rank in ranks)


def _waiting_panel(flow: QueueFigures) -> Panel:
    """By tenant where there are several, else by class where there are several."""
    title = "Waiting"
    lines: tuple[PanelLine, ...] = (PanelLine("waiting", "all"),)
    if len(flow.tenants) > 1:
        title = "Waiting by tenant"
        lines += tuple(PanelLine(f"waiting_t{i}", tenant) for i, tenant in enumerate(flow.tenants))
    elif len(flow.classes) > 1:
        title = "Waiting by class"
        lines += tuple(
            PanelLine(f"waiting_c{i}", f"{level}") for i, level in enumerate(flow.classes)
        )
    return Panel("waiting", title, "requests", lines, step=True)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _percent(part: float | None) -> float | None:
    return None if part is None else 100 * part


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _total(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


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
    lines = (PanelLine("memory_own", "this session"), PanelLine("memory_used", "in use by all"))
    whole = None if math.isnan(total) else total
    return Panel("memory", title, "GiB", lines, total=whole, brief=True)


def _device_panels(devices: tuple[DeviceSampled, ...]) -> list[Panel]:
    """Only figures that this platform reports: a host has no power here, nothing is made up."""
    shown = _shown(devices)
    gpu = bool(shown) and shown[0].kind == "gpu"
    title, label = ("GPU utilisation", "of the GPU") if gpu else ("Host CPU, no GPU", "all cores")
    made = (
        [Panel("device", title, "%", (PanelLine("utilization", label),), total=100)]
        if shown
        else []
    )
    if any(device.power_w is not None for device in shown):
        made.append(Panel("power", "GPU power", "W", (PanelLine("power", "drawn"),)))
    if any(device.temperature_c is not None for device in shown):
        hottest = (PanelLine("temperature", "hottest"),)
        made.append(Panel("temperature", "GPU temperature", "°C", hottest))
    return made
