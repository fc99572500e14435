"""Measure a server at an address, in the words of a Session: bench, sweep, compare.

Any OpenAI endpoint can be benched, two can be compared, and the load can be swept. Knobs can be
turned where the server is an llmserve, through its own /llmserve/knobs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmserve.bench.results.slo import parse_slo
from llmserve.bench.run.cell import live, make_load, nothing, run_job
from llmserve.bench.run.client import KEY, Client, ReplyError
from llmserve.bench.run.http_target import HttpTarget
from llmserve.bench.run.repeats import Repeats
from llmserve.core.clock import MonotonicClock
from llmserve.core.knobs import Clamp, KnobError, Knobs
from llmserve.lab.settings import Setting, Side, Stage
from llmserve.serving.runtime import Runtime

if TYPE_CHECKING:
    from llmserve.bench.load.workload import Load
    from llmserve.bench.results.result import Result
    from llmserve.engines.tokenizer import Tokenizer
    from llmserve.lab.comparison import Comparison
    from llmserve.lab.sweep_result import Sweep
    from llmserve.lab.tuning.max_rate import MaxRate
    from llmserve.lab.tuning.result import TuneResult


class RemoteError(OSError):
    """No server answers at the address, or not as one would."""


class Remote:
    """A server at an address; `with llmserve.connect(url) as server:` gives its thread back."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        tokenizer: Tokenizer | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """api_key: else of LLMSERVE_API_KEY. model: else the first that the server lists.
        tokenizer: the model's, and prompts are exact in tokens; else about as many words.
        extra: fields of every request's body in place of ignore_eos, priority and tenant, which a
        strict server refuses; {} sends none of them."""
        self._key = api_key or os.environ.get(KEY) or "none"
        self._client = Client(url, self._key)
        self.url = self._client.url
        self._tokenizer = tokenizer
        self._extra = extra
        self._runtime = Runtime()
        self._others: list[Client] = []
        try:
            self.model = model or self._runtime.call(_first_model(self._client))
        except BaseException:
            self.close()
            raise

    def bench(
        self, load: Load | None = None, *, repeats: int = 3, warmup: bool = True,
        slo: str | None = None, progress: bool = True, **workload: Any,
    ) -> Result:  # fmt: skip
        """As Session.bench; what only the server sees (its queue, batches, cache) is not in it."""
        load = make_load(load, workload)
        job = Repeats(
            self._target(self._client, self.model), load, repeats=repeats, warmup=warmup,
            slo=parse_slo(slo), engine="http", model=self.model, seed=getattr(load, "seed", 0),
        )  # fmt: skip
        watch = live(job) if progress else nothing
        return run_job(self._runtime, job, progress=progress, watch=watch)

    def sweep(self, load: Load | None = None, **axes: Any) -> Sweep:
        """As Session.sweep: fields of the load of any server, and an llmserve's knobs."""
        from llmserve.lab.live_sweep import sweep

        return sweep(self._runtime, self._stage(), load, **axes)

    def compare(
        self, a: Setting, b: Setting, load: Load | None = None, **options: Any
    ) -> Comparison:
        """As Session.compare; the server is an llmserve."""
        from llmserve.lab.compare import compare

        return compare(self._runtime, self._stage(), a, b, load, **options)

    def tune(self, load: Load | None = None, **options: Any) -> TuneResult:
        """As Session.tune; the server is an llmserve. Without a `calibration` nothing is predicted,
        and as many settings race as there is time for."""
        from llmserve.lab.tuning.tune import tune

        return tune(self._runtime, self._stage(), load, **options)

    def max_rate(self, load: Load | None = None, **options: Any) -> MaxRate:
        """As Session.max_rate, of any server."""
        from llmserve.lab.tuning.max_rate import max_rate

        target = self._target(self._client, self.model)
        return max_rate(self._runtime, target, load, **options)

    def against(
        self, url: str, load: Load | None = None, *, api_key: str | None = None,
        model: str | None = None, pairs: int = 6, warmup: bool = True, slo: str | None = None,
        progress: bool = True, **workload: Any,
    ) -> Comparison:  # fmt: skip
        """Compare this server (A) with another one (B), on identical arrivals."""
        from llmserve.lab.compare import Comparing

        load = make_load(load, workload)
        other = Client(url, api_key or self._key)
        self._others.append(other)
        targets = (
            self._target(self._client, self.model),
            self._target(other, model or self._runtime.call(_first_model(other))),
        )
        a, b = (Side(t.url, t, _nothing) for t in targets)
        job = Comparing(
            a, b, load, pairs=pairs, warmup=warmup, slo=parse_slo(slo),
            seed=getattr(load, "seed", 0),
        )  # fmt: skip
        watch = live(job) if progress else nothing
        return run_job(self._runtime, job, progress=progress, watch=watch)

    def close(self) -> None:
        """Give its thread and connections back; the server goes on. Safe to call twice."""
        if self._runtime.alive:
            for client in (self._client, *self._others):
                self._runtime.call(client.aclose())
            self._runtime.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.model} at {self.url}>"  # not the key

    def _target(self, client: Client, model: str) -> HttpTarget:
        return HttpTarget(
            client, model, MonotonicClock(), self._tokenizer, extra=self._extra
        )

    def _stage(self) -> Stage:
        panel = self._runtime.call(_panel(self._client))
        return Stage(self._target(self._client, self.model), panel, "http", self.model)


def connect(url: str, **options: Any) -> Remote:
    """A server at an address, any OpenAI endpoint, to bench, sweep and compare.

        with llmserve.connect("http://127.0.0.1:8000/v1", api_key=…) as server:
            server.bench(rate=20, duration=30)

    api_key: else the environment's LLMSERVE_API_KEY. model: else the first that the server lists.
    tokenizer, extra: see `Remote`. Raises RemoteError (an OSError) where nobody answers, or not as
    an OpenAI server would. Close it, or use `with`: it holds a thread.
    """
    return Remote(url, **options)


async def _nothing() -> None:
    """Open a server at an address: one request finds out what it is."""


async def _first_model(client: Client) -> str:
    try:
        answer = await client.ask("GET", f"{client.url}/models")
        return str(answer["data"][0]["id"])
    except ReplyError as error:
        hint = {
            401: f" (give the key, or set {KEY})",
            404: " (the url of an OpenAI server mostly ends in /v1)",
        }.get(error.status, "")
        raise RemoteError(f"{client.url}: {error}{hint}") from error
    except (KeyError, IndexError, TypeError):
        raise RemoteError(f"{client.url} lists no model: name one") from None


class _Described(msgspec.Struct):
    """A knob, as GET /llmserve/knobs returns it."""

    value: Any
    disabled: str | None = None


class _KnobsBody(msgspec.Struct):
    knobs: dict[str, _Described]


class _Answer(msgspec.Struct):
    clamped: tuple[Clamp, ...] = ()


class RemoteKnobPanel:
    """The knobs of an llmserve at an address."""

    def __init__(self, client: Client, described: _KnobsBody) -> None:
        self._client = client
        self._described = described.knobs
        self.knobs = Knobs().changed({name: knob.value for name, knob in described.knobs.items()})

    def lacks(self, name: str) -> str | None:
        if name not in self._described:
            return "the server has no such knob"
        return self._described[name].disabled

    async def turn(self, names: Collection[str], requested: Knobs) -> Sequence[Clamp]:
        changes = {name: getattr(requested, name) for name in names}
        try:
            answer = await self._client.ask("PATCH", _knobs_url(self._client), changes)
        except ReplyError as error:
            raise RemoteError(f"{self._client.url}: {error}") from error
        return msgspec.convert(answer, _Answer).clamped


class ForeignKnobPanel:
    """A knob panel without knobs, of a server that is no llmserve."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.knobs = Knobs()

    def lacks(self, name: str) -> str | None:
        return (
            f"{self._url} is no llmserve, and its knobs cannot be turned from here; sweep the load "
            "(rate, concurrency, prompt_tokens, max_tokens), or compare two addresses"
        )

    async def turn(self, names: Collection[str], requested: Knobs) -> Sequence[Clamp]:
        name = next(iter(names))
        raise KnobError(name, str(self.lacks(name)))


async def _panel(client: Client) -> RemoteKnobPanel | ForeignKnobPanel:
    try:
        answer = await client.ask("GET", _knobs_url(client))
        return RemoteKnobPanel(client, msgspec.convert(answer, _KnobsBody))
    except ReplyError as error:
        if error.status in (0, 401, 403):
            raise RemoteError(f"{client.url}: {error}") from error
    except (msgspec.ValidationError, KnobError):
        pass  # it answers anything, or is an llmserve of another time
    return ForeignKnobPanel(client.url)


def _knobs_url(client: Client) -> str:
    return client.url.removesuffix("/v1") + "/llmserve/knobs"
