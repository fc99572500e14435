"""What a dashboard says of requests that were stopped, over a real service and the simulator."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from dashboard.parts import Desk
from dashboard.story import tell
from llmserve.bench.load.workload import Workload
from llmserve.core.knobs import Knobs
from llmserve.dashboard.batch_tape import OPEN, Cursor
from llmserve.dashboard.panels import COLUMNS
from llmserve.dashboard.recorder import SeriesRecorder

CROWD = Workload(concurrency=32, requests=64, prompt_tokens=64, max_tokens=400)


@pytest.fixture(scope="module")
def stopped() -> Desk:
    """Four requests run and the others wait when their client leaves, in the middle of a step."""
    desk = Desk.lay()
    desk.parts.board.update(("max_num_seqs",), Knobs(max_num_seqs=4))
    tell(desk, [CROWD], 1.5)
    desk.recorder.sample()
    return desk


def recorders(desk: Desk) -> list[SeriesRecorder]:
    """One that saw it, and one that is opened afterwards."""
    parts = desk.parts
    late = SeriesRecorder(parts.telemetry, parts.board, parts.bus, parts.clock)
    late.sample()
    return [desk.recorder, late]


def test_every_stopped_request_has_ended_on_the_tape_and_in_the_table(stopped: Desk) -> None:
    for recorder in recorders(stopped):
        news = recorder.tape.news(Cursor(), limit=None)
        assert len(news.rows) == CROWD.concurrency
        assert {row[9] for row in news.rows} == {"abort"}
        segments = list(struct.iter_unpack("<3IHHI", news.segments))
        assert len({number for number, *_ in segments}) == CROWD.concurrency
        assert all(last != OPEN for _, _, last, *_ in segments)


def test_nothing_runs_so_no_kv_is_in_use(stopped: Desk) -> None:
    shown = [
        dict(zip(COLUMNS, recorder.rows(0)[2][-1], strict=True)) for recorder in recorders(stopped)
    ]
    assert [(row["running"], row["kv_use"]) for row in shown] == [(0, 0), (0, 0)]
    before = stopped.recorder.rows(0)[2][:, COLUMNS.index("kv_use")]
    assert np.nanmax(before) > 0
    text = stopped.parts.telemetry.prometheus.render().decode()
    (line,) = (line for line in text.splitlines() if line.startswith("llmserve_kv_cache_usage"))
    assert line.endswith(" 0.0")
