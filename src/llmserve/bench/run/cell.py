"""Jobs as a cell runs them: it waits in its own thread, shows progress, obeys an interrupt."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.result import Result
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.bench.run.cached_target import CachedTarget, Keeps, check_repeats
from llmserve.bench.run.driver import ServiceTarget
from llmserve.bench.run.job import Job, State
from llmserve.bench.run.live import LiveThroughput
from llmserve.bench.run.process import Address, ProcessTarget, asks_for_process, suits, usable_cores
from llmserve.bench.run.repeats import REPEATS, Repeats
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import SPECS
from llmserve.core.validation import meant, plain
from llmserve.plots.live_figure import in_notebook
from llmserve.serving.runtime import Runtime, is_done
from llmserve.serving.service import Service

T = TypeVar("T")
_POLL_S = 0.2
_STOP_TIMEOUT_S = 10.0


def bench(
    runtime: Runtime,
    service: Service,
    bus: EventBus,
    load: Load | None = None,
    *,
    repeats: int = REPEATS,
    warmup: bool = True,
    slo: Slo | str | None = None,
    progress: bool = True,
    address: Address | None = None,
    own_process: bool | None = None,
    cores: int | None = None,
    keep_replies: Callable[[], Keeps] | None = None,
    **workload: Any,
) -> Result:
    """Run to the end; an interrupt ends it and gives what was measured until then.

    own_process: drive over HTTP from a process of its own, as a client of another machine would.
    None: where an open loop has 100 requests/s or more and there are 4 cores or more (of the
    machine, unless `cores` says), for it takes a core.
    keep_replies: makes the response cache that stands before the service, one for each run.
    """
    load = make_load(load, workload)
    if keep_replies is not None:
        check_repeats(load)
        own_process = _kept_here(own_process)
    if own_process is None:
        found = usable_cores() if cores is None else cores
        own_process = address is not None and asks_for_process(load, found)
    info = service.engine.info
    job = Repeats(
        _target(service, bus, load, address, own_process)
        if keep_replies is None
        else CachedTarget(service, bus, keep_replies),
        load,
        repeats=repeats,
        warmup=warmup,
        slo=parse_slo(slo),
        engine=info.engine,
        model=info.model_id,
        seed=load.seed if isinstance(load, Workload) else 0,
    )
    return run_job(runtime, job, progress=progress, watch=live(job) if progress else nothing)


def _kept_here(own_process: bool | None) -> bool:
    if own_process:
        raise ValueError(
            "response_cache is measured from the server's own loop: leave own_process out"
        )
    return False


def live(job: Job[Any]) -> Callable[[], None]:
    """What draws the job in its cell while it goes on."""
    return LiveThroughput(lambda: job.state, MonotonicClock().now).watch


def nothing() -> None:
    """Nothing is to be drawn."""


def _target(
    service: Service, bus: EventBus, load: Load, address: Address | None, own: bool
) -> ServiceTarget:
    if not own:
        return ServiceTarget(service, bus)
    if address is None:
        raise ValueError("this service has no address that another process could reach")
    if (reason := suits(load)) is not None:
        raise ValueError(f"the load cannot be sent from a process of its own: {reason}")
    return ProcessTarget(service, bus, address)


def make_load(load: Load | None, fields: dict[str, Any]) -> Load:
    """A load as it is, or the Workload of these fields; `duration` is short for `duration_s`."""
    if load is None:
        if "duration" in fields:
            fields["duration_s"] = fields.pop("duration")
        _check_names(fields)
        return Workload(**{name: plain(value) for name, value in fields.items()})
    if fields:
        raise TypeError(f"a load is given already: {', '.join(fields)} cannot change it")
    return load


def _check_names(fields: dict[str, Any]) -> None:
    known = [each.name for each in dataclasses.fields(Workload)]
    for name in fields:
        if name in SPECS.keys() - known:
            raise TypeError(
                f"{name} is a knob, and no field of a load: turn it by set, or sweep it by a list "
                f"({name}=[…])"
            )
        if name not in known:
            hint = meant(name, known, called="its fields:")
            raise TypeError(f"a load has no field {name!r}{hint}")


def run_job(
    runtime: Runtime,
    job: Job[T],
    *,
    progress: bool = True,
    watch: Callable[[], None] = nothing,
) -> T:
    """Run it on the runtime's loop. `watch` is called in this thread, a few times a second."""
    future: concurrent.futures.Future[T] | None = None
    try:
        future = runtime.submit(job.run())
        _follow(future, job, progress, watch)
    except KeyboardInterrupt:
        runtime.loop.call_soon_threadsafe(job.stop)
        if future is None:  # it came before there was anything to wait for
            raise
        is_done(future, _STOP_TIMEOUT_S)
        watch()  # what came last
    finally:
        if future is not None:
            future.cancel()  # does nothing to one that is done
    return future.result() if future.done() and not future.cancelled() else job.result()


def _follow(
    future: concurrent.futures.Future[T], job: Job[T], progress: bool, watch: Callable[[], None]
) -> None:
    bar = _bar(job.state, progress)
    try:
        while not is_done(future, _POLL_S):
            _draw(bar, job.state)
            watch()
        watch()  # what came last
    finally:
        bar.close()


def _draw(bar: Any, state: State) -> None:
    bar.n = state.done
    bar.set_description(state.words, refresh=False)
    bar.set_postfix(
        running=state.running, failed=state.failed, tokens_per_s=f"{state.tokens_per_s:,.0f}",
        refresh=False,
    )  # fmt: skip
    bar.refresh()


def _bar(state: State, shown: bool) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types here
        monitor_interval = 0  # its monitor is a thread that would outlive the run

    out = sys.stdout if in_notebook() else sys.stderr  # a cell paints stderr red
    return Bar(total=state.total, unit="request", leave=False, disable=not shown, file=out)
