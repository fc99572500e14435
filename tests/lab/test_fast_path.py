"""The fast simulation does what the service does over asyncio, event by event and bit by bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from llmserve.bench.load.request_kinds import Kind
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.curves import Moment
from llmserve.bench.results.report import Report
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
from llmserve.core.types import Request, SamplingParams, Structured
from llmserve.lab import run_virtual, simulate
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import SimulationResult
from llmserve.observe.window import Summary
from support.examples import examples
from support.random_loads import TURNS, RandomLoad, random_loads
from support.whole_path import through_service

Row = dict[str, Any]


def test_every_knob_is_among_those_that_are_tried() -> None:
    assert TURNS.keys() == SPECS.keys()


def plain(id: str, arrival: float, tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=tokens)
    return Request(id=id, prompt_ids=(1, 2, 3), sampling=sampling, arrival=arrival)


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
                for request_id, n in event.counts.items():
                    rows[request_id]["times"] += [event.t] * n
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
    if told.mean is not None:  # so each gap is right
        assert itl.mean == pytest.approx(told.mean, rel=1e-12)
    assert itl.n == sum(max(0, len(row["times"]) - 1) for row in expected)


@given(load=random_loads())
@settings(max_examples=examples(60))
def test_the_fast_path_and_the_service_have_the_same_events_at_the_same_times(
    load: RandomLoad,
) -> None:
    check_both(load)


SAYINGS: dict[str, dict[str, Any]] = {
    "a prompt alone": {"max_tokens": 0, "prompt_logprobs": 1},
    "a prompt alone that has a form": {
        "max_tokens": 0, "prompt_logprobs": 1,
        "structured_outputs": Structured("choice", '["stone"]'),
    },
    "a prompt's log-probabilities": {"max_tokens": 30, "prompt_logprobs": 0},
    "a form that is complete": {"structured_outputs": Structured("choice", '["stone"]')},
    "a form that is complete with the last token there may be": {
        "max_tokens": 5, "structured_outputs": Structured("choice", '["stone"]'),
    },
    "a form that is cut": {
        "max_tokens": 4, "structured_outputs": Structured("choice", '["stone"]'),
    },
    "a form of no text": {"structured_outputs": Structured("choice", '[""]')},
    "a form of characters of several bytes": {
        "structured_outputs": Structured("choice", '["\u00e9t\u00e9"]'), "stop": ("t\u00e9",),
    },
    "a form that may be any words": {
        "max_tokens": 9, "structured_outputs": Structured("grammar", "start: /(.|\\n)*/"),
    },
    "a stop in a form": {
        "structured_outputs": Structured("choice", '["stone"]'), "stop": ("on",),
        "include_stop_str_in_output": True,
    },
    "a stop token in a form": {
        "structured_outputs": Structured("choice", '["stone"]'), "stop_token_ids": (ord("n"),),
        "include_stop_str_in_output": True,
    },
    "a stop that is kept": {
        "max_tokens": 60, "stop": ("e",), "include_stop_str_in_output": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SAYINGS)
def test_whatever_a_request_wants_to_be_told_it_ends_as_through_the_service(name: str) -> None:
    """Thrice, so that the cache has its blocks, beside one that decodes all the while."""
    sampling = SamplingParams(**SAYINGS[name])
    requests: list[Timed] = [plain("other", 0.0, 200)]
    for number, arrival in enumerate((0.01, 0.01, 1.0)):
        prompt = tuple(range(9))
        requests.append(
            Request(id=f"r{number}", prompt_ids=prompt, sampling=sampling, arrival=arrival)
        )
    check_both(RandomLoad(requests, {"max_num_batched_tokens": 6}, None, [], {}, {"block_size": 4}))


BINARY: dict[str, Any] = {"prefill_ms": 31.25, "decode_ms": 15.625}
"""Steps end at whole 64ths of a second, which floats hold."""


def test_one_that_times_out_in_the_turn_of_its_token_is_not_counted_as_served() -> None:
    """The alarm is set during the step, so it rings behind the step's end."""
    requests: list[Timed] = [plain("r0", 0.0, 50), plain("r1", 0.08, 5)]
    check_both(RandomLoad(requests, {"request_timeout_s": 6 / 64}, None, [], {}, BINARY))


def test_a_prompt_alone_that_times_out_in_the_turn_of_its_end_is_a_timeout() -> None:
    alone = SamplingParams(max_tokens=0, prompt_logprobs=0)
    one = Request(id="r0", prompt_ids=(1, 2, 3), sampling=alone, arrival=0.0)
    requests: list[Timed] = [one, plain("r1", 0.01, 1)]
    knobs: dict[str, object] = {"request_timeout_s": 2 / 64}
    check_both(RandomLoad(requests, knobs, None, [], {}, BINARY))
    assert simulate(requests, knobs, **BINARY).report.errors == {"timeout": 2}


@pytest.mark.parametrize("late_s", [-1e-9, 0.0, 4e-7, 1e-6, 2e-6])
def test_an_arrival_just_behind_a_steps_end_is_in_the_next_step(late_s: float) -> None:
    requests: list[Timed] = [plain("r0", 0.0, 50), plain("r1", 4 / 64 + late_s, 5)]
    load = RandomLoad(requests, {}, None, [], {}, BINARY)
    check_both(load)
    first_tokens = simulate(requests, **BINARY).columns["first_token"]
    assert first_tokens[1] == (7 / 64 if late_s < 1e-6 else 8 / 64)


@pytest.mark.long
@given(load=random_loads(120))
@settings(max_examples=examples(30))
def test_crowds_have_the_same_events_at_the_same_times_too(load: RandomLoad) -> None:
    check_both(load)


LOADS: dict[str, tuple[Workload, dict[str, object]]] = {
    "poisson": (Workload(rate=40, requests=60, max_tokens=(1, 40), seed=3), {"max_num_seqs": 4}),
    "constant, in step with the engine": (
        Workload(rate=100, process="constant", requests=60, prompt_tokens=16, max_tokens=(1, 9)),
        {"max_num_seqs": 4, "max_active": 4},
    ),
    "bursts, most of them refused": (
        Workload(rate=200, process="gamma", requests=90, max_tokens=20, ttft_slo_ms=100, seed=2),
        {"max_num_seqs": 4, "queue_max": 6, "admission_slo": "refuse"},
    ),
    "a closed loop": (Workload(concurrency=9, requests=50, max_tokens=(1, 30)), {}),
    "a closed loop that is refused": (
        Workload(concurrency=9, duration_s=1.5, max_tokens=(1, 30)),
        {"max_num_seqs": 2, "queue_mode": "reject"},
    ),
    "more clients than may wait": (
        Workload(concurrency=30, requests=60, max_tokens=9), {"max_num_seqs": 2, "queue_max": 5},
    ),
    "shared prefixes": (
        Workload(rate=60, requests=60, prompt_tokens=100, prefix_tokens=70, prefix_groups=3,
                 max_tokens=(1, 40)),
        {},
    ),
    "chats": (
        Workload(rate=20, requests=20, prompt_tokens=(5, 40), max_tokens=(1, 40), turns=(1, 4),
                 think_s=0.05, seed=1),
        {"max_num_seqs": 4},
    ),
    "chats that think of nothing": (
        Workload(concurrency=4, requests=12, prompt_tokens=20, max_tokens=12, turns=3),
        {"policy": "shortest_first"},
    ),
    "kinds of tenants": (
        Workload(rate=80, requests=80, seed=5, mix={
            "small": Kind(weight=3, prompt_tokens=8, max_tokens=(1, 20), tenant="a"),
            "large": Kind(prompt_tokens=200, max_tokens=30, tenant="b", priority=1,
                          ttft_slo_ms=400),
        }),
        {"policy": "fair_share", "tenant_weights": "a:3", "max_num_seqs": 3},
    ),
}  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "roomy": {},
    "scarce, with jitter": {"kv_capacity_tokens": 480, "jitter": 0.2, "seed": 4},
    "small blocks": {"block_size": 4, "kv_capacity_tokens": 2000, "decode_token_ms": 0.3},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LOADS)
def test_a_load_has_the_report_that_the_bench_driver_measures(name: str, engine: str) -> None:
    load, knobs = LOADS[name]
    load = replace(load, same_prompts=True)
    whole = through_service(load, knobs, **ENGINES[engine])
    events: list[Event] = []
    run = run_virtual(load, knobs, fold=events.append, **ENGINES[engine])
    assert events == whole.events
    assert run.report == whole.report
    counted = simulate(load, knobs, **ENGINES[engine])
    assert whole.report is not None
    check_report(counted.report, whole.report)
    assert len(counted.requests()) == counted.report.sent
    assert counted.steps == len(run.records)


def check_report(mine: Report, theirs: Report) -> None:
    """Equal, but for the order in which gaps were summed up."""
    for name in Report.__struct_fields__:
        got, told = getattr(mine, name), getattr(theirs, name)
        if name == "itl":
            assert got.mean == pytest.approx(told.mean, rel=1e-12)
            got, told = (replace_mean(one) for one in (got, told))
        if name == "timeline":
            assert [list(flat(one)) for one in got] == [
                pytest.approx(list(flat(one)), rel=1e-9, nan_ok=True) for one in told
            ]
        elif name == "quantiles":
            assert got.keys() == told.keys()
            for part in got:
                assert got[part] == pytest.approx(told[part], rel=1e-12), part
        else:
            assert got == told, name


def replace_mean(summary: Summary) -> Summary:
    return msgspec.structs.replace(summary, mean=None)


def flat(moment: Moment) -> Iterator[float]:
    yield from (moment.t_s, moment.tokens_per_s)
    yield math.nan if moment.ttft_s is None else moment.ttft_s
