"""`Session` builds the parts and owns them; magics, notebooks and the command line are entry points
to it.

No module globals: several sessions live side by side, and `close` gives everything of one back.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from llmserve.core.knobs import Applied, KnobBoard, Knobs
from llmserve.core.types import ParamError
from llmserve.engines import registry
from llmserve.engines.base import EngineInfo, Pauses
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.http.options import EndpointOptions
from llmserve.entrypoints.http.server import HttpServer, bind
from llmserve.entrypoints.session.lab_verbs import LabVerbs
from llmserve.entrypoints.session.resources import SessionResources
from llmserve.entrypoints.session.shutdown_report import (
    MemoryStayed,
    ShutdownReport,
    came_back,
    weighed,
)
from llmserve.entrypoints.session.switches import Switches
from llmserve.entrypoints.session.tenants_table import standings, tenants_frame
from llmserve.observe import Telemetry, Why
from llmserve.observe.request_log_lines import LifecycleLog, LogOptions
from llmserve.observe.stats import Snapshot
from llmserve.observe.trace import TraceWriter
from llmserve.scheduling.user_policy import Choice, try_out
from llmserve.serving.api_keys import Keyring, KeyTerms, Source, read_key_terms, terms_of
from llmserve.serving.requests import Prompt, Reply, collect, next_piece, pieces_of, prompt_text
from llmserve.serving.service import Service

if TYPE_CHECKING:
    import openai
    import pandas as pd

    from llmserve.dashboard import Dashboards, DashboardView
    from llmserve.entrypoints.session.engine_launch import EngineLaunch

F = TypeVar("F", bound=Choice)


class Session(LabVerbs):
    """A running server. Use `llmserve.serve` to make one; `with serve() as session:` closes it
    after. From then on what needs the server raises RuntimeError; what was recorded can be read.
    """

    def __init__(
        self,
        *,
        launch: EngineLaunch,
        address: tuple[str, int],
        api_key: str,
        knobs: Knobs,
        switches: Switches,
        key_terms: Mapping[str, KeyTerms],
        allow_special_tokens: bool,
        endpoint: EndpointOptions,
        log: LogOptions | None,
    ) -> None:
        self.api_key = api_key
        self.clock, self.bus, self.runtime = launch.clock, launch.bus, launch.runtime
        self.board = KnobBoard(knobs)
        self.telemetry = Telemetry(self.bus, self.clock)
        self._lock = threading.Lock()
        self._dashboards: Dashboards | None = None
        self._keyring = Keyring(api_key, key_terms)
        self.service = Service(
            launch.engine, self.board, self.bus, self.clock, terms_of(key_terms)
        )
        self.service.allow_special_tokens = allow_special_tokens
        app = build_app(self.service, self.telemetry, self._keyring, endpoint)
        sock = bind(*address)
        self.host, self.port = sock.getsockname()[:2]
        server = HttpServer(app, sock)
        resources = SessionResources(self.runtime, self.service, server, self.clock, switches)
        self._closer = weakref.finalize(self, resources.close)
        self._resources = resources
        try:
            if log is not None:
                lifecycle = LifecycleLog(log, partial(prompt_text, self.service))
                self.bus.attach(lifecycle)
                resources.after_close.append(lifecycle.close)
            resources.open(launch.name)
        except BaseException:
            self._closer()
            raise
        self.telemetry.prometheus.model_name = self.info.model_id

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def proxy_url(self) -> str:
        """The same through jupyter-server-proxy, for JupyterHub and Binder; a path from the
        server's root where the public host is not known to the kernel."""
        host = os.environ.get("JUPYTERHUB_PUBLIC_URL") or os.environ.get("JUPYTERHUB_HOST", "")
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        return f"{host.rstrip('/')}{prefix}proxy/{self.port}/v1"

    @property
    def info(self) -> EngineInfo:
        """The engine that runs: `model_id`, `max_model_len` and `kv_capacity_tokens` (tokens),
        `ceilings` of the knobs, `device`, `pids`."""
        return self.service.engine.info

    @property
    def knobs(self) -> Knobs:
        """All knobs as they are now, frozen; `set` changes them."""
        return self.board.current

    @property
    def closed(self) -> bool:
        """Nothing of it runs any more."""
        return not self._closer.alive

    def client(self, **options: Any) -> openai.OpenAI:
        """An openai.OpenAI that knows the address and the key; `options` are its own. Requests
        name the model as `session.info.model_id`."""
        import openai

        return openai.OpenAI(base_url=self.url, api_key=self.api_key, **options)

    def generate(self, prompt: Prompt, **sampling: Any) -> Reply:
        """The whole reply, a str that also carries `outcome`. An interrupt cancels only this.

        prompt: text (a user's turn where the model has a chat template) or a list of messages,
            [{"role": "user", "content": "Hello"}].
        sampling: max_tokens (256, or what the context has left), temperature (1; 0 is greedy),
            top_p, top_k, seed, stop and the other fields of SamplingParams; and `priority` (lower
            goes first), `tenant`, `ttft_slo_ms`, `raw=True` (no template).

        Raises ParamError for a wrong option or too long a prompt, Refused where it is rejected
        or no slot comes free in time, RequestTimeout after `request_timeout_s`, EngineError where
        the engine dies.
        """
        return Reply.of(self.runtime.call(collect(self.service, prompt, sampling)))

    async def agenerate(self, prompt: Prompt, **sampling: Any) -> Reply:
        """As `generate`, to `await` in a cell or on any event loop."""
        asked = self.runtime.submit(collect(self.service, prompt, sampling))
        return Reply.of(await asyncio.wrap_future(asked))

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Pieces of the reply as they come; options and errors as of `generate`. Leaving the loop
        early stops the generation."""
        pieces = pieces_of(self.service, prompt, sampling)
        try:
            while (piece := self.runtime.call(next_piece(pieces))) is not None:
                yield piece
        finally:
            if not self.closed:  # not waited for: the collector may close it in any thread
                self.runtime.submit(pieces.aclose())

    async def astream(self, prompt: Prompt, **sampling: Any) -> AsyncIterator[str]:
        """As `stream`, from any event loop."""
        pieces = pieces_of(self.service, prompt, sampling)
        try:
            while True:
                piece = await asyncio.wrap_future(self.runtime.submit(next_piece(pieces)))
                if piece is None:
                    return
                yield piece
        finally:
            if not self.closed:
                await asyncio.wrap_future(self.runtime.submit(pieces.aclose()))

    def set(self, *, evict: object = False, **changes: object) -> Applied:
        """Change knobs while requests flow: set(max_num_seqs=8, policy="priority").

        Returns once the engine has taken them up: what `changed`, what was `clamped` to a ceiling,
        at which engine step (`adopted_step`) and after how many `ms`; `str` of it is a sentence.

        evict: requests above a lowered max_num_seqs are preempted at once (they go on later, and
        lose no token) instead of ending first, where the engine can (docs/engines.md).

        Raises KnobError, and changes nothing, where a name or value is wrong.
        """
        return self.runtime.call(self.service.set_knobs(changes, source="code", evict=evict))

    def sleep(self, level: int = 1, *, drain_s: float = 30.0) -> str:
        """Give the engine's memory back until `wake`; a sentence says what that came to.

        Requests in the engine may end first, for `drain_s` seconds; later ones are ended with an
        error that says so. Requests that come meanwhile wait, `queue_timeout_s` at most, and are
        served after `wake`. level: of vLLM on a GPU, 1 keeps the weights in host memory, 2 drops
        them; an engine without a sleep of its own is stopped, and started by `wake`.
        """
        before = weighed(self.service.pids)
        sleep = self.service.supervisor.sleep(level, drain_s)
        outcome = self.runtime.call(sleep, progress="going to sleep")
        return f"{outcome}; {came_back(before, weighed(self.service.pids))} came back"

    def wake(self) -> str:
        """Let the engine serve again, with the knobs as they are now. EngineError if it cannot."""
        return self.runtime.call(self.service.supervisor.wake(), progress="waking the engine")

    def restart(self, *, drain_s: float = 5.0) -> str:
        """A new engine, in whatever state this one is; waiting requests go on waiting meanwhile.

        Requests in the engine may end first, for `drain_s` seconds. EngineError as of `wake`.
        """
        return self.runtime.call(self.service.supervisor.restart(drain_s), progress="restarting")

    def pause(self) -> None:
        """Freeze the engine between two steps. Requests in it keep slot and KV, and go on after
        `resume` as if nothing was; `request_timeout_s` goes on counting. ParamError if it cannot.
        """
        self.runtime.call(self._pausing().pause())

    def resume(self) -> None:
        """Let a paused engine go on. No harm to one that is not paused."""
        self.runtime.call(self._pausing().resume())

    def policy(self, function: F) -> F:
        """Let your function choose the next request, as a decorator: `policy=custom` from now on.

        function(waiting, ledger, knobs) -> the id of one of `waiting`, a tuple of Request in order
        of arrival. `ledger.now` is the time, `ledger.tenants[name]` has `served`, `waiting` and
        `active`. It is tried on made-up queues first: PolicyError says what it does wrong, and
        nothing changes. Should it fail later, it is removed and fifo goes on.
        """
        try_out(function)
        self.runtime.call(self.service.use_policy(function))
        return function

    def tenants(self) -> pd.DataFrame:
        """One row per tenant: its terms (weight, limits per second, ttft_slo_ms), what it has
        waiting and active now, and what became of its requests (figures of the newest 2,000)."""
        standing = self.runtime.call(standings(self.service))
        return tenants_frame(standing, self.telemetry.requests.rows())

    def tenants_from(self, source: Source) -> None:
        """Other tenants' keys and terms from now on, as `serve(api_keys=…)` takes them.

        On ValueError nothing has changed. Requests that are here go on, under their tenant's new
        terms; a key that is left out opens no more.
        """
        key_terms = read_key_terms(source)
        self.runtime.call(self._set_terms(key_terms))

    def stats(self) -> Snapshot:
        """Figures of the last 30 s, and totals since the start: `ttft`, `itl`, `tpot`, `e2e`,
        `queue` (each mean, p50, p95, p99, n; seconds), tokens per second, fills, KV. Print it."""
        return self.telemetry.stats.snapshot(self.clock.now())

    def explain(self, window_s: float = 30.0) -> Why:
        """Why it is slow: TTFT and ITL p95 of the last seconds by cause, and the knob that binds.

        Print it, or show it as a cell's last line.
        """
        return self.telemetry.why.explain(self.knobs, self.clock.now(), window_s)

    def tape(self) -> pd.DataFrame:
        """One row per engine step, the newest 10,000: when and how long (seconds), prefill and
        decode tokens, who runs and waits, KV tokens, and the caps in force."""
        return self.telemetry.steps.to_frame()

    def requests(self) -> pd.DataFrame:
        """One row per request, the newest 2,000, the newest last: state, tokens, and `queue_s`,
        `ttft_s`, `prefill_s`, `decode_s`, `e2e_s` (seconds), preemptions, why it ended."""
        return self.telemetry.requests.to_frame()

    @contextmanager
    def trace(self, path: str | os.PathLike[str]) -> Iterator[TraceWriter]:
        """Write every event to a JSON-lines file: with session.trace("trace.jsonl"): …

        `llmserve.observe.trace.read_trace` gives the events back; as a load it is sent again by
        `bench(read_load("trace.jsonl"))` of `llmserve.bench.load.traces`.
        """
        writer = TraceWriter(
            os.fspath(path),
            t=self.clock.now(),
            model=self.info.model_id,
            engine=self.info.engine,
            knobs=self.knobs.as_dict(),
        )
        self.bus.attach(writer)
        try:
            yield writer
        finally:
            self.bus.detach(writer)
            writer.close()

    def dashboard(self) -> DashboardView:
        """Live charts and controls; show it as a cell's last line. Its `snapshot()` is a PNG,
        `to_figure()` a plotly Figure, `save("report.html")` writes a page."""
        from llmserve.dashboard import Dashboards

        with self._lock:
            if self._dashboards is None:
                self._dashboards = Dashboards(self)
        return self._dashboards.open()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the session closes, in the closing thread."""
        self._resources.on_close.append(callback)

    def close(self) -> ShutdownReport:
        """Give back the thread, the port, the child processes and their memory; say how much.

        Safe to call twice. Requests in flight end, waiting ones are refused. Warns with
        MemoryStayed where engine processes outlive it and hold more than 64 MiB.
        """
        first = not self.closed
        self._closer()
        self._resources.close()  # once more: an interrupt may have ended the wait for it
        if first and (stayed := self._resources.freed.stayed) is not None:
            warnings.warn(stayed, MemoryStayed, stacklevel=2)
        return self._resources.freed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<llmserve session, closed>"
        return f"<llmserve session {self.info.model_id} on {self.info.engine}, {self.url}>"

    def _pausing(self) -> Pauses:
        if isinstance(engine := self.service.engine, Pauses):
            return engine
        others = registry.able_to(Pauses)
        raise ParamError("engine", f"the {self.info.engine} engine cannot pause; {others} can")

    async def _set_terms(self, key_terms: Mapping[str, KeyTerms]) -> None:
        self._keyring.replace(key_terms)
        self.service.set_terms(terms_of(key_terms))
