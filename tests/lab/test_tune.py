"""Tuning of live services on virtual time, and of a real session: budget, restores, verdicts."""

from __future__ import annotations

import _thread
import threading
from typing import Any

import pytest

from lab.worlds import simulated
from llmserve.bench.load.workload import Load, Workload
from llmserve.core.clock import VirtualClock
from llmserve.core.events import Event, Submitted
from llmserve.core.knobs import KnobError
from llmserve.engines.simulator.costs import StepCost
from llmserve.entrypoints.session.serve import serve
from llmserve.lab.settings import here
from llmserve.lab.simulation import simulate
from llmserve.lab.sweep_result import combinations
from llmserve.lab.tuning.limits import read_limits
from llmserve.lab.tuning.max_rate import MaxRate, RateSearch
from llmserve.lab.tuning.prediction import Predict
from llmserve.lab.tuning.result import NO_GAIN, TuneResult
from llmserve.lab.tuning.tune import read_grid
from llmserve.lab.tuning.tuning_job import BUDGET, NOTHING_LEFT, Tuning
from llmserve.serving.service import Service

LOAD = Workload(rate=20, duration_s=5, prompt_tokens=32, max_tokens=(8, 48))
COST = StepCost(prefill_ms=20, decode_ms=10, decode_token_ms=0.2)
SEQS = {"max_num_seqs": [1, 2, 4, 8, 16, 32]}
LIMITS = read_limits({"ttft_p95_ms": 300, "itl_p99_ms": 60})


def predicted_by(cost: StepCost) -> Predict:
    def predict(load: Load, knobs: Any) -> Any:
        slo = LIMITS.of_a_request
        return simulate(load, knobs, cost, slo=slo, progress=False).report

    return predict


def tuned(
    grid: dict[str, list[Any]], load: Workload = LOAD, *, before: dict[str, Any] | None = None,
    figure: str = "goodput_per_s", budget_s: float = 180.0, jitter: float = 0.1, seed: int = 1,
    predict: Predict | None = None, heard: Any = None, after: Any = None, **options: Any,
) -> TuneResult:  # fmt: skip
    clock = VirtualClock()

    async def main() -> TuneResult:
        cost = {"prefill_ms": 20, "decode_ms": 10, "decode_token_ms": 0.2}
        async with simulated(clock, jitter=jitter, seed=seed, **cost) as (service, bus):
            await service.set_knobs(before or {}, source="test")
            job = Tuning(
                here(service, bus), combinations(grid), load, figure=figure, limits=LIMITS,
                budget_s=budget_s, **options,
            )  # fmt: skip
            if predict is not None:
                job.predict(predict)
            if heard is not None:
                bus.attach(lambda event: heard(job, event))
            found = await job.run()
            if after is not None:
                after(service)
            return found

    return clock.run(main())


def test_a_setting_that_serves_more_wins_with_its_margin_and_the_knobs_go_back() -> None:
    seen: list[int] = []
    found = tuned(
        SEQS, before={"max_num_seqs": 2}, predict=predicted_by(COST),
        after=lambda service: seen.append(service.board.current.max_num_seqs),
    )
    assert found.winner is not None
    assert found.winner["max_num_seqs"] >= 8
    assert found.gain is not None
    assert found.gain.low is not None
    assert found.gain.low > 0
    assert found.stopped.startswith(NOTHING_LEFT)
    assert "max_num_seqs=2" in found.refuted
    assert "is better than max_num_seqs=2" in str(found)
    assert "0 restarts" in str(found)
    assert seen == [2]
    assert TuneResult.from_json(found.to_json()) == found


def test_the_winner_is_set_only_where_that_is_asked_for() -> None:
    seen: list[int] = []

    def after(service: Service) -> None:
        seen.append(service.board.current.max_num_seqs)

    found = tuned(
        SEQS, before={"max_num_seqs": 2}, predict=predicted_by(COST), apply=True, after=after
    )
    assert found.winner is not None
    assert found.applied
    assert seen == [found.winner["max_num_seqs"]]
    tuned({"max_num_seqs": [1, 2]}, before={"max_num_seqs": 32}, apply=True, after=after)
    assert seen[1] == 32, "no gain, so nothing is set"


def test_where_nothing_is_better_no_gain_is_shown() -> None:
    found = tuned({"max_num_seqs": [1, 2, 32]}, before={"max_num_seqs": 32})
    assert found.winner is None
    assert found.best == {"max_num_seqs": 32}
    assert NO_GAIN in str(found)
    assert found.pairs == ()
    same = tuned({"policy": ["fifo", "priority"]}, predict=predicted_by(COST))
    assert same.winner is None
    assert len([each for each in same.points if each.trials]) == 1, "predicted to be the same"


@pytest.mark.parametrize("budget_s", [12.0, 30.0, 60.0])
@pytest.mark.parametrize("predict", [None, predicted_by(COST)])
def test_the_budget_is_kept_whatever_the_settings_do(
    budget_s: float, predict: Predict | None
) -> None:
    found = tuned(
        SEQS, before={"max_num_seqs": 1}, budget_s=budget_s, predict=predict,
        load=Workload(rate=60, duration_s=5, prompt_tokens=32, max_tokens=64),
    )  # fmt: skip
    assert found.spent_s <= budget_s + 0.5
    assert found.stopped.startswith((BUDGET, NOTHING_LEFT))


def test_a_trial_that_cannot_win_any_more_is_cut_short() -> None:
    found = tuned({"max_num_seqs": [1, 32]}, before={"max_num_seqs": 32})
    one = next(each for each in found.points if each.values["max_num_seqs"] == 1)
    alone = simulate(LOAD, {"max_num_seqs": 1}, COST, progress=False).makespan_s
    assert alone > 12
    assert one.trials
    assert found.live_s < 2 * 6 + 2 * 10, "neither of its trials came to its end"
    assert "behind" in found.refuted["max_num_seqs=1"]


def test_a_budget_that_lets_nothing_race_says_so() -> None:
    found = tuned(SEQS, before={"max_num_seqs": 2}, budget_s=12, predict=predicted_by(COST))
    assert found.winner is None
    assert found.stopped.startswith("budget, before another setting could race")


def test_trials_of_a_round_meet_the_same_arrivals() -> None:
    sizes: list[int] = []

    def heard(job: Tuning, event: Event) -> None:
        if isinstance(event, Submitted):
            sizes.append(event.prompt_tokens)

    load = Workload(rate=2, requests=3, prompt_tokens=(1, 4000), max_tokens=1)
    tuned({"max_num_seqs": [8, 16]}, load, warmup=False, heard=heard)
    rounds = [sizes[i : i + 3] for i in range(0, len(sizes), 3)]
    assert rounds[0] == rounds[1] == rounds[2]
    assert rounds[3] == rounds[4] == rounds[5] != rounds[0]


def test_what_is_above_a_ceiling_is_named_with_its_cure_and_the_others_race() -> None:
    found = tuned({"max_num_seqs": [8, 999]}, before={"max_num_seqs": 2})
    assert "start one with a higher ceiling" in found.refuted["max_num_seqs=999"]
    assert found.winner == {"max_num_seqs": 8}


def test_throughput_counts_only_within_the_slo() -> None:
    """More at once is more tokens per second, and gaps that grow with each."""
    limits = LIMITS
    assert limits.most_ms["itl_p99"] == 60
    found = tuned(
        {"max_num_seqs": [1, 16]}, Workload(concurrency=16, duration_s=4, max_tokens=32),
        before={"max_num_seqs": 16}, figure="generated_tokens_per_s",
    )
    assert "breaks the SLO" in found.refuted["max_num_seqs=1"]


def test_a_stopped_tuning_keeps_its_trials_and_puts_the_knobs_back() -> None:
    seen: list[int] = []
    count = 0

    def heard(job: Tuning, event: Event) -> None:
        nonlocal count
        if isinstance(event, Submitted):
            count += 1
            if count == 250:
                job.stop()

    found = tuned(
        SEQS, before={"max_num_seqs": 3}, heard=heard,
        after=lambda service: seen.append(service.board.current.max_num_seqs),
    )
    assert found.interrupted
    assert found.stopped.startswith("interrupted")
    assert found.winner is None
    assert seen == [3]


def test_an_interrupt_through_a_real_session_puts_the_knobs_back() -> None:
    with serve(engine="simulator", prefill_ms=20, decode_ms=10, max_num_seqs=2) as session:
        turned = threading.Event()

        def watch(before: Any, after: Any) -> None:
            if after.max_num_seqs == 24:
                turned.set()

        session.board.watch(watch)

        def interrupt() -> None:
            turned.wait(30)
            _thread.interrupt_main()

        thread = threading.Thread(target=interrupt)
        thread.start()
        found = session.tune(
            slo={"ttft_p95_ms": 500}, knobs={"max_num_seqs": [24]}, rate=30, duration=2,
            calibration=False, progress=False, max_tokens=16, budget_s=60,
        )  # fmt: skip
        thread.join()
        assert turned.is_set()
        assert found.interrupted
        assert session.knobs.max_num_seqs == 2
        session.generate("It serves on.", max_tokens=2)


def test_an_error_on_the_way_puts_the_knobs_back() -> None:
    with serve(engine="simulator", prefill_ms=2, decode_ms=1, max_num_seqs=7) as session:
        from llmserve.lab.tuning.tune import tune

        stage = here(session.service, session.bus)

        class Failing(type(stage.target)):  # type: ignore[misc]  # a target of any kind
            async def send(self, request: Any) -> Any:
                if session.knobs.max_num_seqs == 3:
                    raise ZeroDivisionError("a bug in the driver")
                return await super().send(request)

        stage = type(stage)(
            Failing(session.service, session.bus), stage.panel, stage.engine, stage.model
        )
        with pytest.raises(ExceptionGroup):
            tune(
                session.runtime, stage, slo="ttft_p95=500ms", knobs={"max_num_seqs": [3]},
                rate=30, requests=10, max_tokens=4, progress=False, calibration=False,
            )  # fmt: skip
        assert session.knobs.max_num_seqs == 7


def test_wrong_words_are_refused_before_anything_runs() -> None:
    with serve(engine="simulator", prefill_ms=1, decode_ms=1) as session:
        for options, words in (
            ({"slo": {"ttft_p95_ms": 0}}, "above 0"),
            ({"slo": {"ttf_p95_ms": 300}}, "ttft_p95"),
            ({"slo": None}, "give slo="),
            ({"slo": {"ttft_p95_ms": 300}, "maximize": "joy"}, "goodput, tokens, requests"),
            ({"slo": {"ttft_p95_ms": 300}, "budget_s": 0}, "budget_s"),
            ({"slo": {"ttft_p95_ms": 300}, "knobs": {"max_seqs": [1]}}, "max_num_seqs"),
            ({"slo": {"ttft_p95_ms": 300}, "knobs": {"max_num_seqs": [0]}}, "within 1 and 1,024"),
            ({"slo": {"ttft_p95_ms": 300}, "knobs": {}}, "names none"),
        ):
            with pytest.raises(ValueError, match=words):
                session.tune(calibration=None, progress=False, **options)
        with pytest.raises(KnobError):
            session.tune(slo="ttft_p95=300ms", knobs={"nope": [1]}, progress=False)
        assert session.requests().empty


def test_the_grid_of_our_own_keeps_within_ceilings_and_holds_the_present_values() -> None:
    with serve(engine="simulator", max_num_seqs=5, max_num_seqs_ceiling=16) as session:
        panel = here(session.service, session.bus).panel
        grid = read_grid(panel, None, session.info.ceilings)
    assert grid["max_num_seqs"] == [5, 8, 16]
    assert 2048 in grid["max_num_batched_tokens"]
    assert grid["policy"] == ["fifo", "shortest_first"]


def test_limits_are_read_from_words_and_from_a_mapping_alike() -> None:
    same = read_limits("ttft_p95=300ms itl_p99=0.05s")
    assert same == read_limits({"ttft_p95_ms": 300, "itl_p99_ms": 50})
    assert str(same) == "ttft_p95 300 ms and itl_p99 50 ms"
    slo = same.of_a_request
    assert slo is not None
    assert (slo.ttft_ms, slo.tpot_ms) == (300, 50)


def test_the_largest_rate_within_an_slo_is_found_and_its_cliff_named() -> None:
    clock = VirtualClock()

    async def main() -> MaxRate:
        async with simulated(clock, prefill_ms=20, decode_ms=10) as (service, bus):
            await service.set_knobs({"max_num_seqs": 4}, source="test")
            load = Workload(rate=1, duration_s=20, prompt_tokens=16, max_tokens=16)
            target = here(service, bus).target
            return await RateSearch(target, load, LIMITS, budget_s=2000).run()

    found = clock.run(main())
    full = simulate(
        Workload(concurrency=8, requests=200, prompt_tokens=16, max_tokens=16),
        {"max_num_seqs": 4}, StepCost(prefill_ms=20, decode_ms=10), progress=False,
    ).report.requests_per_s  # fmt: skip
    assert found.rate is not None
    assert found.breaks_at is not None
    assert found.rate < full
    assert found.breaks_at <= 1.06 * found.rate
    assert "requests/s meet ttft_p95 300 ms" in found.verdict
    assert MaxRate.from_json(found.to_json()) == found
