"""`LabVerbs`: what a session measures of itself, each in the lab's words and by the lab's code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from llmserve.entrypoints.http.response_cache import CacheOptions, ReplyCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmserve.bench.load.workload import Load
    from llmserve.bench.results.result import Result
    from llmserve.core.events import EventBus
    from llmserve.lab.calibration.calibration import Calibration
    from llmserve.lab.comparison import Comparison
    from llmserve.lab.settings import Setting
    from llmserve.lab.sweep_result import Sweep
    from llmserve.lab.tuning.max_rate import MaxRate
    from llmserve.lab.tuning.result import TuneResult
    from llmserve.observe import Telemetry
    from llmserve.serving.runtime import Runtime
    from llmserve.serving.service import Service


class LabVerbs(ABC):
    """What a Session measures: bench, compare and sweep, without a restart."""

    api_key: str
    bus: EventBus
    runtime: Runtime
    service: Service
    telemetry: Telemetry

    @property
    @abstractmethod
    def url(self) -> str:
        """The base URL for OpenAI clients."""

    def bench(self, load: Load | None = None, **options: Any) -> Result:
        """Run a load against this session: TTFT, ITL, throughput, each with its interval.

        bench(rate=20, duration=30): an open loop, so many requests per second for so many seconds.
        bench(concurrency=8, requests=64): a closed loop, so many clients; 8 of them by default.
        load, or more fields of `llmserve.bench.load.workload.Workload`: prompt_tokens=128,
        max_tokens=64, mix, seed …
        repeats=3, after a warmup=True; slo="ttft:200 tpot:50" (ms) counts goodput; progress=True.
        repeat_share=0.3, response_cache=True (or as `serve` takes it): so many requests come once
        more, and hits of a cache that starts empty in each run are shown apart from all else.
        An interrupt keeps what was measured. ValueError where the fields contradict each other.
        """
        from llmserve.bench.run.cell import bench
        from llmserve.bench.run.process import Address

        options.setdefault("address", Address(self.url, self.api_key))
        kept = CacheOptions.read(options.pop("response_cache", None))
        if kept is not None:
            options["keep_replies"] = partial(ReplyCache, self.service, kept)
        return bench(self.runtime, self.service, self.bus, load, **options)

    def compare(
        self, a: Setting, b: Setting, load: Load | None = None, **options: Any
    ) -> Comparison:
        """Two settings (knobs by name, or a policy) in turns on identical arrivals; the verdict
        names a better one only where it is shown. pairs=6; the rest as for `bench`.

        compare({"max_num_seqs": 8}, {"max_num_seqs": 32}, rate=20, duration=30)
        compare("fifo", "fair_share", mix="long:30 short:70", rate=20)
        """
        from llmserve.lab.compare import compare
        from llmserve.lab.settings import here

        return compare(self.runtime, here(self.service, self.bus, "compare"), a, b, load, **options)

    def sweep(self, load: Load | None = None, **axes: Any) -> Sweep:
        """Every combination of the axes given as lists, knobs and fields of Workload, without a
        restart. rounds=3; path= keeps each run, and the same call goes on from there; the rest as
        for `bench`. KnobError for an axis that is neither.

        sweep(max_num_seqs=[1, 8, 32], concurrency=16).plot()
        """
        from llmserve.lab.live_sweep import sweep
        from llmserve.lab.settings import here

        return sweep(self.runtime, here(self.service, self.bus, "sweep"), load, **axes)

    def calibrate(self, load: Load | None = None, **options: Any) -> Calibration:
        """Fit what a step takes to the tape, for simulations of this very server: `simulate` of
        what comes back is `llmserve.lab.simulate` with these times, tails included.

        Where the tape tells too little, a short load of its own runs first, or `load`: budget_s=20
        seconds of it, up to `max_num_seqs` at once (32, or the knob where that is more). Knobs are
        put back. CalibrationError where it cannot be.

        model = session.calibrate(); model.simulate(load, {"max_num_seqs": 16})
        """
        from llmserve.lab.calibration.calibrate import calibrate
        from llmserve.lab.settings import here

        stage = here(self.service, self.bus, "calibrate")
        info = self.service.engine.info
        return calibrate(self.runtime, stage, self.telemetry, load, info=info, **options)

    def validate(self, model: Calibration, loads: Any = None, **options: Any) -> Calibration:
        """Predict held-out loads, run each twice on identical arrivals, and keep the errors with
        the calibration that comes back: `model = session.validate(model)`.

        A closed loop gives the capacity, then rates at 40, 70 and 95 % of it follow; budget_s=40.
        loads: a Workload for its lengths, or other loads (a recorded trace) in place of all these.
        knobs= are tried and put back, slo= counts goodput. An interrupt keeps what was measured.
        """
        from llmserve.lab.settings import here
        from llmserve.lab.what_if.validate import validate

        return validate(
            self.runtime, here(self.service, self.bus, "validate"), model, loads, **options
        )

    def tune(
        self, load: Load | None = None, *, slo: Mapping[str, float] | str | None = None,
        **options: Any,
    ) -> TuneResult:  # fmt: skip
        """The knobs that serve a load best, without a restart: simulated, raced live on identical
        arrivals, confirmed against the present setting. `winner` is None where no gain is shown.

        tune(slo={"ttft_p95_ms": 300, "itl_p99_ms": 50}, rate=20)
        maximize="goodput" (of the SLO), "tokens" or "requests". knobs={"max_num_seqs": [8, 32]}:
        what is tried; budget_s=180: seconds in all; trial_s=5: of a trial; calibration: as
        `calibrate` gave it, else it is made; the rest as for `bench`. The knobs go back to what
        they were, after an interrupt too; apply=True leaves the winner in force.
        """
        from llmserve.lab.settings import here
        from llmserve.lab.tuning.tune import tune

        progress = options.get("progress", True)
        return tune(
            self.runtime, here(self.service, self.bus, "tune"), load, slo=slo,
            ceilings=self.service.engine.info.ceilings,
            calibrate=lambda seconds: self.calibrate(budget_s=seconds, progress=progress),
            **options,
        )  # fmt: skip

    def max_rate(self, load: Load | None = None, **options: Any) -> MaxRate:
        """The largest rate of requests that meets an SLO, by bisection with intervals; where the
        figures jump between two rates, the cliff is named.

        max_rate(slo={"ttft_p95_ms": 300}, max_tokens=64)
        budget_s=120; start=1: the first rate, requests per second; the rest as for `bench`.
        """
        from llmserve.bench.run.driver import ServiceTarget
        from llmserve.lab.tuning.max_rate import max_rate

        return max_rate(self.runtime, ServiceTarget(self.service, self.bus), load, **options)
