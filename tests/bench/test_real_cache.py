"""A real engine's prefix cache: what it holds from before a run is found and said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llmserve
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.bench.run import driver
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.engines.base import CachesPrefixes
from llmserve.entrypoints.session.session import Session

LOAD = Workload(concurrency=2, requests=4, prompt_tokens=128, max_tokens=2)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="torch", enable_prefix_caching=True) as one:
        yield one


def run(session: Session) -> Report:
    target = ServiceTarget(session.service, session.bus)
    return session.runtime.call(Bench(target, LOAD).run())


def empty(session: Session) -> None:
    target = ServiceTarget(session.service, session.bus)
    session.runtime.call(target.reset_cache())


def test_prompts_of_an_earlier_run_are_found_in_the_cache_and_flagged(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(session.service.engine, CachesPrefixes)
    assert [run(session).prefix_hits for _ in range(2)] == [0, 0], "new prompts in every run"
    monkeypatch.setattr(driver, "run_salt", lambda load: 7)
    first, second = run(session), run(session)
    assert (first.contaminated, second.contaminated) == (False, True)
    assert (second.prefix_hits or 0) > 0.8
    assert "CONTAMINATED CACHE" in str(second)
    empty(session)
    assert run(session).prefix_hits == 0, "what a comparison does between its runs"
