from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from llmserve.events import DeviceSampled
from llmserve.figures import nice_ceiling
from llmserve.ui.panels import COLUMNS, panels, row
from llmserve.ui.picture import to_png
from ui.parts import GIB, Parts


def device(kind: Literal["gpu", "host"], used: int, own: int | None) -> DeviceSampled:
    return DeviceSampled(
        t=0, kind=kind, name=f"{kind}{used}", used_bytes=used * GIB, total_bytes=80 * GIB,
        own_bytes=None if own is None else own * GIB,
    )


def figures(parts: Parts) -> dict[str, float]:
    snapshot = parts.telemetry.stats.snapshot(parts.clock.now(), 5.0)
    return dict(zip(COLUMNS, row(snapshot), strict=True))


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
    *_, memory = panels((host,))
    assert (memory.title, memory.total) == ("Host memory, no GPU", 80)
    *_, memory = panels((host, device("gpu", 40, 30), device("gpu", 41, 30)))
    assert (memory.title, memory.total) == ("GPU memory", 160)


def test_every_line_of_every_panel_has_a_column() -> None:
    drawn = [line.column for panel in panels(()) for line in panel.lines]
    assert sorted(drawn) == sorted(COLUMNS)


def test_the_picture_is_a_png_with_the_lines_in_their_colours() -> None:
    import io

    from PIL import Image

    times = np.arange(100.0)
    values = np.tile(np.arange(100, dtype=np.float32)[:, None], len(COLUMNS))
    values[40:60] = np.nan
    drawn = to_png(panels(()), times, values, [30.0, 1e9])
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    assert image.size == (2400, 880)
    colours = {colour for _, colour in image.getcolors(1 << 20) or ()}
    assert {(0x1F, 0x77, 0xB4), (0xE0, 0x7B, 0x00)} <= colours
    assert len(drawn) < 100_000


def test_the_picture_of_an_empty_session_can_be_drawn() -> None:
    empty = to_png(panels(()), np.empty(0), np.empty((0, len(COLUMNS)), np.float32), [])
    assert empty.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.2, 1.5), (210, 300), (999, 1000), (0.03, 0.03)]
)
def test_an_axis_ends_at_a_round_figure_that_holds_the_highest_value(
    value: float, top: float
) -> None:
    assert nice_ceiling(value) == pytest.approx(top)
