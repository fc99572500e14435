"""What `simulate` takes, gives and refuses."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from llmserve.bench.load.workload import Workload
from llmserve.core import progress
from llmserve.core.knobs import KnobError, Knobs
from llmserve.core.types import ParamError, Request, SamplingParams, Structured
from llmserve.lab import StepCost, simulate, sweep
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import Change
from llmserve.lab.token_gaps import TokenGaps
from llmserve.observe.requests import RequestRow
from llmserve.observe.window import Summary
from llmserve.scheduling.ledger import TenantUsage
from llmserve.scheduling.user_policy import LedgerView, PolicyError

BUSY = Workload(rate=60, requests=120, max_tokens=(1, 30), seed=2)


def request(number: int, arrival: float, tokens: int = 4, **fields: object) -> Request:
    return Request(
        id=f"r{number}",
        prompt_ids=(number,) * 8,
        sampling=SamplingParams(max_tokens=tokens),
        arrival=arrival,
        **fields,  # type: ignore[arg-type]  # plain fields
    )


def test_the_figures_of_a_lone_request_are_those_of_its_steps() -> None:
    cost = StepCost(prefill_ms=20, decode_ms=10, prefill_token_ms=0.5)
    result = simulate([request(0, 1.0)], cost=cost)
    row = result.requests().loc[0]
    assert row["arrival"] == 1.0
    assert row["queue_s"] == 0.0
    assert row["ttft_s"] == pytest.approx(0.024)
    assert row["e2e_s"] == pytest.approx(0.054)
    assert (row["finish_reason"], row["completion_tokens"], result.steps) == ("length", 4, 4)
    assert result.figures()["itl_mean_ms"] == pytest.approx(10)


def test_every_tokens_time_is_there_where_it_is_asked_for() -> None:
    requests = [request(0, 0.0), request(1, 0.01, 2)]
    result = simulate(requests, token_times=True)
    assert list(result.token_times[0]) == pytest.approx([0.025, 0.06, 0.07, 0.08])
    assert list(result.token_times[1]) == pytest.approx([0.06, 0.07])
    assert simulate(requests).token_times == {}


def test_a_client_that_leaves_and_knobs_that_turn_take_effect_at_their_times() -> None:
    requests: list[Timed] = [(request(0, 0.0, 50), 0.1), request(1, 0.0, 50), request(2, 0.0, 5)]
    changes: list[Change] = [(0.3, {"max_active": 5})]
    result = simulate(requests, {"max_active": 1}, changes=changes)
    rows = result.requests()
    assert rows["finish_reason"].tolist() == ["abort", "length", "length"]
    assert rows.loc[0, "e2e_s"] == 0.1
    assert rows["queue_s"].tolist() == [0.0, 0.1, 0.3]
    assert result.knobs.max_active == 5
    assert result.report.errors == {"abort": 1}


def test_those_refused_have_their_reason_and_no_times() -> None:
    requests = [request(number, 0.0, 50) for number in range(4)]
    result = simulate(requests, {"max_active": 1, "queue_max": 1})
    rows = result.requests()
    assert rows["finish_reason"].tolist() == ["length", "length", "queue_full", "queue_full"]
    assert rows["ttft_s"].isna().tolist() == [False, False, True, True]
    assert (result.report.n, result.report.errors) == (2, {"queue_full": 2})


def test_a_prompt_alone_is_computed_and_has_no_token() -> None:
    """Though a cache had it: the log-probabilities are of its own computation."""
    alone = SamplingParams(max_tokens=0, prompt_logprobs=0)
    requests: list[Timed] = [request(0, 0.0), replace(request(0, 1.0), id="r1", sampling=alone)]
    rows: list[RequestRow] = []
    cost = StepCost(prefill_ms=20, prefill_token_ms=1)
    result = simulate(requests, cost=cost, each=rows.append, slo="ttft:1", block_size=1)
    row = result.requests().loc[1]
    assert (row["finish_reason"], row["completion_tokens"]) == ("length", 0)
    assert row["cached_tokens"] == 0
    assert result.requests()["ttft_s"].isna().tolist() == [False, True]
    assert row["e2e_s"] == pytest.approx(0.028)
    assert (rows[1].ttft_s, rows[1].cached_tokens) == (None, None)
    assert (result.report.n, result.report.met) == (2, 1)


def test_a_form_takes_the_shortest_text_that_fits() -> None:
    form = Structured("regex", "[a-z]{3,9}")
    sampling = SamplingParams(max_tokens=50, structured_outputs=form)
    row = simulate([replace(request(0, 0.0), sampling=sampling)]).requests().loc[0]
    assert (row["finish_reason"], row["completion_tokens"]) == ("stop", 3)


def test_a_form_that_nothing_fits_is_refused_with_its_requests_id() -> None:
    form = Structured("grammar", 'start: "a" start')
    sampling = SamplingParams(structured_outputs=form)
    with pytest.raises(ParamError, match="request r7: the form cannot be kept to") as caught:
        simulate([request(6, 0.0), replace(request(7, 1.0), sampling=sampling)])
    assert caught.value.param == "structured_outputs"


def test_each_request_is_given_as_it_ends() -> None:
    rows: list[RequestRow] = []
    result = simulate(BUSY, {"max_num_seqs": 4}, each=rows.append)
    assert len(rows) == result.report.sent
    ends = [row.arrival + (row.e2e_s or 0.0) for row in rows]
    assert ends == pytest.approx(sorted(ends))
    assert sum(row.completion_tokens for row in rows) == result.report.generated_tokens


def test_goodput_counts_the_requests_within_the_objective() -> None:
    result = simulate(BUSY, {"max_num_seqs": 4}, slo="ttft:300")
    times = result.columns["first_token"] - result.columns["arrival"]
    assert result.report.met == int((times <= 0.3).sum())
    assert 0 < result.report.met < result.report.n
    assert simulate(BUSY).report.met is None


def test_the_same_load_gives_the_same_figures_and_a_sweep_is_of_them() -> None:
    once = simulate(BUSY, {"max_num_seqs": 4}).figures()
    assert simulate(BUSY, {"max_num_seqs": 4}).figures() == once
    frame = sweep(BUSY, {"max_num_seqs": [4, 8]})
    assert frame.iloc[0].to_dict() == pytest.approx({"max_num_seqs": 4, **once})


def test_requests_are_taken_one_by_one_and_none_is_kept() -> None:
    """Of each there are 68 bytes, and what is on its way: 20,000 would be 40 MB as objects."""
    alive = 0

    def requests() -> Iterator[Request]:
        nonlocal alive
        for number in range(20_000):
            alive = number
            yield request(number, number * 0.05, 3)

    simulate([request(0, 0.0)])  # imports what it needs
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = simulate(requests())
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert (result.report.n, alive) == (20_000, 19_999)
    assert kept < 20_000 * 200 + 4e6


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([request(0, -1.0)], "arrival of r0"),
        ([request(0, 2.0), request(1, 1.0)], "arrival of r1.*2 s or later"),
        ([request(0, math.nan)], "arrival of r0"),
        (["tell me"], "a request of the load"),
        ([Request(id="r0", prompt_ids=(), sampling=SamplingParams(), arrival=0.0)], "prompt of r0"),
    ],
)
def test_requests_that_cannot_be_are_refused_by_name(requests: list[Request], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simulate(requests)


def test_wrong_knobs_options_and_functions_are_refused_before_anything_runs() -> None:
    with pytest.raises(KnobError, match="max_num_seqs"):
        simulate(BUSY, {"max_num_seq": 3})
    with pytest.raises(KnobError, match="policy=function"):
        simulate(BUSY, {"policy": "custom"})
    with pytest.raises(KnobError, match="within 1 and 1,024"):
        simulate(BUSY, changes=[(1.0, {"max_num_seqs": 0})])
    with pytest.raises(ValueError, match="time of a change of knobs"):
        simulate(BUSY, changes=[(-1.0, {"max_num_seqs": 2})])
    with pytest.raises(TypeError, match="jitter"):
        simulate(BUSY, jiter=0.1)
    with pytest.raises(ValueError, match="jitter"):
        simulate(BUSY, jitter=7)
    with pytest.raises(ValueError, match="tfft"):
        simulate(BUSY, slo="tfft:300")
    with pytest.raises(PolicyError, match="returned None"):
        simulate(BUSY, policy=lambda waiting, ledger, knobs: None)  # type: ignore[arg-type, return-value]  # that is the point


def test_a_policy_of_ones_own_that_fails_on_the_way_ends_the_simulation() -> None:
    def fails_late(waiting: tuple[Request, ...], ledger: LedgerView, knobs: Knobs) -> str:
        if any(one.id == "bench-60" for one in waiting):
            raise LookupError("no such tenant")
        return waiting[0].id

    with pytest.raises(PolicyError, match="no such tenant"):
        simulate(BUSY, {"max_num_seqs": 2}, policy=fails_late)


def test_a_long_simulation_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Line:
        def __init__(self) -> None:
            self.said: list[str] = []

        def write(self, text: str) -> None:
            self.said.append(text)

        def end(self) -> None:
            self.said.append("end")

    line = Line()
    monkeypatch.setattr(progress, "line", lambda: line)
    monkeypatch.setattr("llmserve.lab.simulation.SHOWN_AFTER_S", 0.0)
    simulate(BUSY)
    assert "simulating, 64 requests so far" in line.said[0]
    assert "done after" in line.said[-2]
    line.said.clear()
    simulate(BUSY, progress=False)
    assert not line.said


def test_gaps_beyond_what_is_kept_are_joined_to_a_ten_thousandth() -> None:
    rng = np.random.default_rng(1)
    gaps, counts = rng.lognormal(-4, 1, 5000), rng.integers(1, 9, 5000)
    few, all_ = TokenGaps(rows=1000), TokenGaps()
    for at, (gap, count) in enumerate(zip(gaps, counts, strict=True)):
        for log in (few, all_):
            log.add([float(at)], [float(gap)], int(count))
    assert (few.joined, all_.joined) == (True, False)
    assert few.summary().n == all_.summary().n == counts.sum()
    assert few.summary().mean == pytest.approx(all_.summary().mean)
    assert few.quantiles() == pytest.approx(all_.quantiles(), rel=2e-4)
    assert len(few.timed()) < len(all_.timed()) == 5000


def test_a_summary_of_counted_values_is_that_of_as_many_values() -> None:
    rng = np.random.default_rng(3)
    values, counts = rng.random(200), rng.integers(1, 20, 200)
    counted = Summary.of_counted(values, counts)
    told = Summary.of(np.repeat(values, counts))
    assert counted.mean == pytest.approx(told.mean)
    for name in ("n", "p50", "p90", "p95", "p99"):
        assert getattr(counted, name) == getattr(told, name)
    assert Summary.of_counted(np.empty(0), np.empty(0, np.int64)) == Summary()


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.7, 1e-3])
@pytest.mark.parametrize("start", [0.0, 17.0, 0.1])
def test_many_tokens_in_one_go_are_as_many_one_by_one(weight: float, start: float) -> None:
    one, many = TenantUsage(counter=start), TenantUsage(counter=start)
    for _ in range(1000):
        one.emitted(1, weight)
    many.emitted_singly(1000, weight)
    assert many.counter == one.counter
