from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from dashboard.parts import INFO, URL, Parts, Wire
from llmserve.dashboard import Dashboards
from llmserve.dashboard.view import ENDED, about


@pytest.fixture
def parts() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    parts.close()


@pytest.fixture
def feeding() -> Callable[[], int]:
    """How many threads feed dashboards, beside those of other tests."""
    before = threading.enumerate()
    return lambda: sum(
        t.name == "llmserve-dashboard" and t not in before for t in threading.enumerate()
    )


def test_closing_the_session_ends_the_thread_and_says_so_on_every_view(
    parts: Parts, feeding: Callable[[], int]
) -> None:
    dashboards = Dashboards(parts)
    wires = [Wire(dashboards.open().charts) for _ in range(2)]
    assert feeding() == 1
    parts.close()
    assert feeding() == 0
    for wire in wires:
        wire.hear({"kind": "hello"})
        content, _ = wire.take()[-1]
        assert (content["ended"], content["status"]) == (True, ENDED)


def test_a_dashboard_of_an_ended_session_starts_no_thread_and_says_so(
    parts: Parts, feeding: Callable[[], int]
) -> None:
    parts.close()
    wire = Wire(Dashboards(parts).open().charts)
    assert feeding() == 0
    wire.hear({"kind": "hello"})
    content, _ = wire.take()[-1]
    assert content["ended"] is True


def test_moving_a_control_of_an_ended_session_is_answered_in_words(parts: Parts) -> None:
    view = Dashboards(parts).open()
    parts.close()
    view.controls.by_name["max_num_seqs"].main.value = 8
    assert view.status == "max_num_seqs stays as it is: the session has ended"


@pytest.mark.parametrize("opened", ["before", "after"])
def test_nothing_can_be_turned_on_a_dashboard_of_an_ended_session(
    parts: Parts, opened: str
) -> None:
    dashboards = Dashboards(parts)
    if opened == "before":
        view = dashboards.open()
        assert not view.controls.by_name["max_num_seqs"].main.disabled
        parts.close()
    else:
        parts.close()
        view = dashboards.open()
    turned = [w for w in view.controls._widgets() if w.has_trait("disabled")]
    assert len(turned) > 20
    assert all(widget.disabled for widget in turned)


def test_a_dashboard_does_not_keep_its_session_alive() -> None:
    parts = Parts()
    gone = weakref.ref(parts)
    dashboards = Dashboards(parts)
    dashboards.open()
    del parts
    gc.collect()
    assert gone() is None
    dashboards.close()


def test_closing_one_view_leaves_the_other(parts: Parts) -> None:
    dashboards = Dashboards(parts)
    first, second = dashboards.open(), dashboards.open()
    first.close()
    wire = Wire(second.charts)
    wire.hear({"kind": "hello"})
    assert wire.take()[0][0]["kind"] == "snapshot"
    assert first.charts.comm is None


def test_the_view_carries_a_picture_for_readers_without_a_kernel(parts: Parts) -> None:
    bundle = Dashboards(parts).open()._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)


def test_the_head_says_in_plain_words_what_computes() -> None:
    simulated = replace(INFO, simulated=True)
    assert about(simulated, URL)["place"] == "simulated, no model runs"
    assert about(replace(INFO, engine="torch"), URL)["place"] == "torch on cpu"


def test_a_snapshot_without_a_page_is_drawn_here(parts: Parts) -> None:
    assert Dashboards(parts).open().snapshot().data.startswith(b"\x89PNG")
