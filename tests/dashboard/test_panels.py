from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import pytest

from dashboard.parts import GIB, Parts
from llmserve.core.events import DeviceSampled, Dispatched, Rejection, Submitted
from llmserve.dashboard.panels import COLUMNS, Panel, panels, row, shown_in
from llmserve.dashboard.plotly_figure import to_figure
from llmserve.dashboard.png import to_png
from llmserve.dashboard.queue_figures import REASONS, QueueFigures
from llmserve.plots.svg import nice_ceiling


def device(kind: Literal["gpu", "host"], used: int, own: int | None) -> DeviceSampled:
    return DeviceSampled(
        t=0,
        kind=kind,
        name=f"{kind}{used}",
        used_bytes=used * GIB,
        total_bytes=80 * GIB,
        own_bytes=None if own is None else own * GIB,
    )


def figures(parts: Parts) -> dict[str, float]:
    snapshot = parts.telemetry.stats.snapshot(parts.clock.now(), 5.0)
    flow = parts.flow.figures(parts.clock.now(), 5.0, slo_s=0.2)
    return dict(zip(COLUMNS, row(snapshot, flow), strict=True))


def shown(*devices: DeviceSampled, flow: QueueFigures | None = None) -> dict[str, Panel]:
    return {panel.id: panel for panel in panels(devices, flow or QueueFigures())}


def test_a_row_holds_the_figures_of_the_last_seconds_in_the_units_of_the_panels() -> None:
    parts = Parts()
    parts.play(1.0, ttft_s=0.25, gap_s=0.05, tokens=10)
    shown = figures(parts)
    assert shown["ttft_p50"] == pytest.approx(250)
    assert shown["itl_p95"] == pytest.approx(50)
    assert shown["generated_rate"] == pytest.approx(10)
    assert shown["prompt_rate"] == pytest.approx(40)
    assert (shown["running"], shown["waiting"]) == (0, 0)
    assert shown["memory_used"] == pytest.approx(9)


def test_what_was_not_measured_is_missing_and_never_zero() -> None:
    shown = figures(Parts())
    for column in ("ttft_p50", "itl_p95", "memory_used", "memory_own"):
        assert math.isnan(shown[column])


def test_host_memory_is_labelled_as_such_and_gpus_take_its_place() -> None:
    host = device("host", 9, 1)
    memory = shown(host)["memory"]
    assert (memory.title, memory.total) == ("Host memory, no GPU", 80)
    memory = shown(host, device("gpu", 40, 30), device("gpu", 41, 30))["memory"]
    assert (memory.title, memory.total) == ("GPU memory", 160)


def test_power_and_temperature_are_panels_only_where_the_platform_tells_them() -> None:
    assert shown(device("host", 9, 1)).keys().isdisjoint({"power", "temperature"})
    gpu = msgspec.structs.replace(device("gpu", 9, 1), power_w=300.0, temperature_c=55.0)
    assert {"power", "temperature", "device"} <= shown(gpu).keys()
    assert shown(device("host", 9, 1))["device"].title == "Host CPU, no GPU"
    assert "device" not in shown()


def test_every_line_of_every_panel_has_a_column() -> None:
    flow = QueueFigures()
    for i in range(9):
        event = Submitted(
            t=0, request_id=f"r{i}", tenant=f"t{i}", priority=i, prompt_tokens=1, max_tokens=1
        )
        flow(event)
    for reason in REASONS:
        flow(Rejection(t=0, request_id=reason, tenant="t0", priority=0, reason=reason))
    flow.speculates = True
    drawn = {line.column for panel in shown(flow=flow).values() for line in panel.lines}
    assert drawn <= set(COLUMNS)
    assert {f"refused_{reason}" for reason in REASONS} <= drawn


def test_goodput_counts_only_what_met_the_objective() -> None:
    parts = Parts()
    parts.play(1.0, ttft_s=0.1)
    parts.play(1.0, ttft_s=0.3)
    told = figures(parts)
    assert told["finished"] == pytest.approx(2 / 5)
    assert told["goodput"] == pytest.approx(1 / 5)


def test_who_waits_is_told_by_tenant_where_there_are_two_else_by_class() -> None:
    flow = QueueFigures()

    def submit(id: str, tenant: str, level: int) -> None:
        flow(
            Submitted(
                t=0, request_id=id, tenant=tenant, priority=level, prompt_tokens=1, max_tokens=1
            )
        )

    submit("a", "gold", 0)
    assert [line.label for line in shown(flow=flow)["waiting"].lines] == ["all"]
    submit("b", "gold", 3)
    assert shown(flow=flow)["waiting"].title == "Waiting by class"
    submit("c", "free", 3)
    assert [line.label for line in shown(flow=flow)["waiting"].lines] == ["all", "gold", "free"]
    told = flow.figures(1.0, 5.0, 1.0)
    assert (told["waiting_t0"], told["waiting_t1"], told["waiting_c1"]) == (2, 1, 2)
    flow(Dispatched(t=1, request_id="a"))
    assert flow.figures(1.0, 5.0, 1.0)["waiting_t0"] == 1


def test_refusals_are_a_panel_once_there_are_some_by_their_reason() -> None:
    flow = QueueFigures()
    assert "refused" not in shown(flow=flow)
    flow(Rejection(t=1, request_id="a", tenant="t", priority=0, reason="rate_limit"))
    assert [line.label for line in shown(flow=flow)["refused"].lines] == ["rate_limit"]
    assert flow.figures(2.0, 5.0, 1.0)["refused_rate_limit"] == pytest.approx(0.2)
    assert flow.figures(9.0, 5.0, 1.0)["refused_rate_limit"] == 0


def test_the_picture_is_a_png_with_the_lines_in_their_colours() -> None:
    import io

    from PIL import Image

    times = np.arange(100.0)
    values = np.tile(np.arange(100, dtype=np.float32)[:, None], len(COLUMNS))
    values[40:60] = np.nan
    drawn = to_png(panels((), QueueFigures()), times, values, [30.0, 1e9])
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    assert image.size == (2400, 880)
    colours = {colour for _, colour in image.getcolors(1 << 20) or ()}
    assert {(0x1F, 0x77, 0xB4), (0xE0, 0x7B, 0x00)} <= colours
    assert len(drawn) < 100_000


@pytest.mark.parametrize(
    ("highest_ms", "unit", "drawn"),
    [(845.0, "ms", 845.0), (25_143.0, "s", 25.143), (121_152.0, "min", 2.0192)],
)
def test_a_panel_of_times_is_drawn_in_the_unit_of_its_longest(
    highest_ms: float, unit: str, drawn: float
) -> None:
    values = np.array([[np.nan, 1.0], [highest_ms, 0.0]], np.float32)
    name, scaled = shown_in(shown()["ttft"], values)
    assert name == unit
    assert float(np.nanmax(scaled)) == pytest.approx(drawn)
    assert shown_in(shown()["throughput"], values)[0] == "tokens/s"
    times = np.array([0.0, 240.0])
    figure = to_figure(
        (shown()["ttft"],), times, np.full((2, len(COLUMNS)), highest_ms, np.float32), (), 0.0
    )
    assert figure.layout.annotations[0].text == f"Time to first token ({unit})"
    assert figure.layout.xaxis.title.text == "time (min)"
    assert max(figure.data[0].x) == 4.0
    assert max(figure.data[0].y) == pytest.approx(drawn)


def test_the_picture_of_an_empty_session_can_be_drawn() -> None:
    empty = to_png(
        panels((), QueueFigures()), np.empty(0), np.empty((0, len(COLUMNS)), np.float32), []
    )
    assert empty.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.2, 1.5), (210, 300), (999, 1000), (0.03, 0.03)]
)
def test_an_axis_ends_at_a_round_figure_that_holds_the_highest_value(
    value: float, top: float
) -> None:
    assert nice_ceiling(value) == pytest.approx(top)
