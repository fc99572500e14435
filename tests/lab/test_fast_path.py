"""The fast simulation does what the service does over asyncio, event by event and bit by bit."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings

from llmserve.core.events import (
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    StepRecorded,
    Submitted,
    TokensEmitted,
)
from llmserve.core.knobs import SPECS
from llmserve.lab import run_virtual, simulate
from llmserve.lab.simulation import SimulationResult
from support.examples import examples
from support.random_loads import TURNS, RandomLoad, random_loads
from support.whole_path import through_service

Row = dict[str, Any]


def test_every_knob_is_among_those_that_are_tried() -> None:
    assert TURNS.keys() == SPECS.keys()


def options(load: RandomLoad) -> dict[str, Any]:
    return {
        "policy": load.policy, "changes": load.changes, "terms": load.terms, **load.engine
    }  # fmt: skip


def rows_of(events: list[Event], load: RandomLoad) -> list[Row]:
    """A row per request, in the order of arrival, as far as the events tell."""
    rows: dict[str, Row] = {}
    first = {one[0].id if isinstance(one, tuple) else one.id: number
             for number, one in enumerate(load.requests)}  # fmt: skip
    for event in events:
        match event:
            case Submitted():
                rows[event.request_id] = {"arrival": event.t, "times": []}
            case Rejection():
                row = rows.setdefault(event.request_id, {"arrival": event.t, "times": []})
                row |= {"ended": event.t, "reason": event.reason}
            case Dispatched():
                rows[event.request_id]["dispatched"] = event.t
            case FirstToken():
                rows[event.request_id] |= {"first_token": event.t, "cached": event.cached_tokens}
            case TokensEmitted():
                rows[event.request_id]["times"] += [event.t] * event.n
            case Finished():
                rows[event.request_id] |= {"ended": event.t, "reason": event.reason}
            case StepRecorded():
                for request_id in event.record.preempted:
                    row = rows[request_id]
                    row["preemptions"] = row.get("preemptions", 0) + 1
    return [rows[request_id] | {"number": first[request_id]} for request_id in first]


def check_columns(result: SimulationResult, expected: list[Row], *, times: bool) -> None:
    columns = result.columns
    assert columns["number"].tolist() == [row["number"] for row in expected]
    for name in ("arrival", "dispatched", "first_token", "ended"):
        told = [row.get(name, math.nan) for row in expected]
        assert columns[name].tolist() == pytest.approx(told, rel=0, abs=0, nan_ok=True), name
    assert [result.reasons[place] for place in columns["reason"]] == [
        row["reason"] for row in expected
    ]
    assert columns["completion_tokens"].tolist() == [len(row["times"]) for row in expected]
    assert columns["cached_tokens"].tolist() == [row.get("cached", 0) for row in expected]
    # one that was preempted after it was given up may have been so once more
    assert columns["preemptions"].tolist() == [row.get("preemptions", 0) for row in expected]
    if times:
        got = [list(result.token_times.get(row["number"], ())) for row in expected]
        assert got == [row["times"] for row in expected]


def gaps_of(expected: list[Row]) -> dict[float, int]:
    counted: dict[float, int] = defaultdict(int)
    for row in expected:
        for before, after in zip(row["times"], row["times"][1:], strict=False):
            counted[after - before] += 1
    return counted


def check_both(load: RandomLoad) -> None:
    whole = through_service(load.requests, load.knobs, **options(load))
    assert whole.failed is None
    events: list[Event] = []
    run = run_virtual(iter(load.requests), load.knobs, fold=events.append, **options(load))
    for mine, theirs in zip(events, whole.events, strict=False):
        assert mine == theirs
    assert len(events) == len(whole.events)
    assert run.knobs == whole.knobs
    expected = rows_of(whole.events, load)
    detailed = simulate(iter(load.requests), load.knobs, token_times=True, **options(load))
    check_columns(detailed, expected, times=True)
    counted = simulate(iter(load.requests), load.knobs, **options(load))
    check_columns(counted, expected, times=False)
    assert counted.steps == detailed.steps == len(run.records)
    assert counted.knobs == whole.knobs
    for name in ("batch_fill", "seq_fill", "kv_peak", "preempted", "prompt_tokens", "errors"):
        assert getattr(counted.report, name) == getattr(run.report, name), name
    assert counted.report.ttft == run.report.ttft
    assert counted.report.e2e == run.report.e2e
    itl, told = counted.report.itl, run.report.itl
    assert (itl.n, itl.p50, itl.p90, itl.p99) == (told.n, told.p50, told.p90, told.p99)
    assert itl.n == sum(gaps_of(expected).values())


@given(load=random_loads())
@settings(max_examples=examples(60))
def test_the_fast_path_and_the_service_have_the_same_events_at_the_same_times(
    load: RandomLoad,
) -> None:
    check_both(load)
