"""A bench with a response cache: hits are counted, timed, and kept out of all other figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import llmserve
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.result import Result
from llmserve.entrypoints.session.session import Session

LOAD: dict[str, Any] = {
    "rate": 40, "duration": 2, "max_tokens": 4, "prompt_tokens": 24, "repeats": 2,
    "warmup": False, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="simulator") as one:
        yield one


def repeats_of(seed: int) -> tuple[int, int]:
    load = Workload(rate=40, duration_s=2, seed=seed, repeat_share=0.5)
    arrivals = list(load.arrivals())
    return sum(a.repeat for a in arrivals), len(arrivals)


def test_each_repeat_is_a_hit_and_the_other_figures_are_of_the_rest(session: Session) -> None:
    found = session.bench(repeat_share=0.5, response_cache=True, **LOAD)
    for seed, run in enumerate(found.runs):
        repeats, sent = repeats_of(seed)
        cache = run.response_cache
        assert cache is not None
        assert cache.joined is not None
        assert (cache.hits.n, cache.misses) == (repeats, sent - repeats)
        assert run.sent == run.n == run.ttft.n == run.e2e.n == sent - repeats
        assert run.generated_tokens == 4 * run.n, "a hit generates nothing"
        assert run.errors == {}
        assert 0 <= cache.joined <= cache.hits.n
        assert not run.contaminated
    assert "response cache:" in str(found)
    assert "all other figures are of the misses" in str(found)
    assert "hits" in found.to_markdown()
    assert "response cache:" in str(found.runs[0])
    assert "hits" in found.runs[0]._repr_html_()


def test_every_run_begins_with_an_empty_cache_and_the_endpoints_own_stays_as_it_is(
    session: Session,
) -> None:
    same = {**LOAD, "same_prompts": True, "repeat_share": 0.5}
    first, second = (session.bench(response_cache=True, **same).runs[0] for _ in range(2))
    assert first.response_cache is not None
    assert second.response_cache is not None
    assert second.response_cache.hits.n == first.response_cache.hits.n


def test_without_a_cache_repeats_are_served_by_the_engine(session: Session) -> None:
    found = session.bench(repeat_share=0.5, **LOAD)
    assert found.runs[0].n == repeats_of(0)[1]
    assert found.runs[0].response_cache is None
    assert "response cache" not in str(found)
    assert found.figure("hit_share") is None


def test_a_cache_that_holds_one_reply_hits_less_than_one_that_holds_all(session: Session) -> None:
    load = {**LOAD, "repeats": 1, "repeat_share": 0.5}
    small = session.bench(response_cache={"max_entries": 1}, **load).runs[0].response_cache
    whole = session.bench(response_cache=True, **load).runs[0].response_cache
    assert small is not None
    assert whole is not None
    assert small.hits.n < whole.hits.n


def test_figures_of_hits_go_through_json_and_into_the_frame(session: Session) -> None:
    found = session.bench(repeat_share=0.5, response_cache=True, **LOAD)
    again = Result.from_json(found.to_json())
    assert again == found
    assert Report.from_json(found.runs[0].to_json()).response_cache is not None
    counts = found.to_frame()["n"].to_dict()
    assert counts["hit_p50"] == sum(repeats_of(seed)[0] for seed in range(2))


@pytest.mark.parametrize("share", [-0.1, 1.5, "much"])
def test_a_share_out_of_bounds_is_refused(share: object) -> None:
    with pytest.raises(ValueError, match="repeat_share"):
        Workload(repeat_share=share)  # type: ignore[arg-type]


def test_a_cache_needs_repeats_and_a_run_in_the_servers_process(session: Session) -> None:
    with pytest.raises(ValueError, match="give repeat_share="):
        session.bench(response_cache=True, **LOAD)
    with pytest.raises(ValueError, match="leave own_process out"):
        session.bench(response_cache=True, repeat_share=0.3, own_process=True, **LOAD)
    with pytest.raises(ValueError, match="max_entries must be within 1"):
        session.bench(response_cache={"max_entries": 0}, repeat_share=0.3, **LOAD)


def test_the_other_requests_are_those_of_any_share() -> None:
    plain = list(Workload(rate=20, requests=200).arrivals())
    some = list(Workload(rate=20, requests=200, repeat_share=0.3).arrivals())
    assert [a.at_s for a in some] == [a.at_s for a in plain]
    new = [(a, b) for a, b in zip(some, plain, strict=True) if not a.repeat]
    assert 100 < len(new) < 180
    assert all(a == b for a, b in new)
    salts = {a.salt for a, _ in new}
    assert all(a.salt in salts for a in some if a.repeat)
