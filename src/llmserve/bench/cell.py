"""The bench as a cell calls it: waits in the cell's thread, shows progress, obeys an interrupt."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from llmserve.bench.driver import Bench, ServiceTarget
from llmserve.bench.report import Report
from llmserve.bench.workload import Workload
from llmserve.observe import Telemetry
from llmserve.runtime import Runtime
from llmserve.service import Service

_POLL_S = 0.2
_STOP_TIMEOUT_S = 10.0


def bench(
    runtime: Runtime,
    service: Service,
    telemetry: Telemetry,
    *,
    duration: float | None = None,
    progress: bool = True,
    **workload: Any,
) -> Report:
    """Run to the end; an interrupt ends the run and gives what was measured until then.

    duration: seconds. workload: the other fields of Workload. progress: a bar on stderr.
    """
    run = Bench(ServiceTarget(service, telemetry.bus), Workload(duration_s=duration, **workload))
    future = runtime.submit(run.run())
    bar = _bar(run.workload.about, progress)
    try:
        while not concurrent.futures.wait([future], _POLL_S).done:
            done = run.progress
            bar.n = done.good + done.failed
            bar.set_postfix(running=done.sent - bar.n, failed=done.failed, refresh=False)
            bar.refresh()
    except KeyboardInterrupt:
        runtime.loop.call_soon_threadsafe(run.stop)
        concurrent.futures.wait([future], _STOP_TIMEOUT_S)
    finally:
        bar.close()
        future.cancel()  # does nothing to one that is done
    return future.result() if future.done() and not future.cancelled() else run.report()


def _bar(total: int | None, shown: bool) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types here
        monitor_interval = 0  # its monitor is a thread that would outlive the run

    return Bar(total=total, unit="request", leave=False, disable=not shown)
