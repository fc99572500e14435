"""`Engine`, and what only some engines can do: the protocols behind which engines differ.

No caller asks which engine it has. Whether an engine can do more than `Engine` is asked in one way:
`isinstance(engine, Pauses)`. An engine has such a method or has not, for as long as it lives. What
depends on how it was started, the method answers itself: None, or an error that gives the reason.
So there is no second list of abilities that could be wrong, and the type checker follows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from llmserve.core.knobs import SPECS, Applied, Knobs
from llmserve.core.types import Chunk, Request, SamplingParams, StepRecord, Structured
from llmserve.core.validation import meant
from llmserve.engines.tokenizer import Tokenizer

if TYPE_CHECKING:
    from starlette.types import ASGIApp

StepSink = Callable[[StepRecord], None]
"""Called on the loop's thread, once per engine step, before that step's chunks are delivered."""

Deliver = Callable[[Chunk], None]
"""Takes a request's next chunk, on the loop's thread, and returns at once."""


class EngineError(RuntimeError):
    """The engine cannot serve: it did not start, or it died. The message has its last words."""


class RequestFailed(RuntimeError):
    """One request failed inside the engine; the engine and all others go on."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a started engine."""

    engine: str
    model_id: str
    max_model_len: int
    """Prompt and reply together, in tokens."""
    kv_capacity_tokens: int
    block_size: int | None = None
    """Tokens of a KV block; None where KV does not come in blocks that are known."""
    vocab_size: int | None = None
    """Token ids are below it; the endpoint refuses others. None where the engine checks itself."""
    ceilings: dict[str, int] = {}
    """Highest value of a live knob that this start allows; a higher one is clamped."""
    unsupported: dict[str, str] = {}
    """Knobs without effect here, each with the reason shown beside the disabled control."""
    device: str = "cpu"
    dtype: str = ""
    pids: tuple[int, ...] = ()
    """Child processes that hold the engine's memory."""
    simulated: bool = False
    """No model runs: what a step takes, and what it says, is made up."""
    details: dict[str, str] = {}
    """Further facts for `%llmserve status`: threads, parameters, attention path …"""


class Engine(Protocol):
    """What every engine can do."""

    @property
    def info(self) -> EngineInfo:
        """Valid once `start` has returned."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def dead(self) -> bool:
        """Whether it ended by itself, and must be started anew before it takes requests."""
        ...

    async def start(self) -> None:
        """Return when ready to generate; EngineError with the cause where it cannot be."""
        ...

    async def stop(self) -> None:
        """Give everything back: processes, memory, files. Safe to call twice, or before start."""
        ...

    async def apply(self, knobs: Knobs) -> Applied:
        """Return once the engine has adopted `knobs` (at once when idle), clamped to ceilings."""
        ...

    async def generate(self, request: Request, deliver: Deliver) -> None:
        """Call `deliver` with each chunk as it comes; return after one with a finish_reason.

        Cancel the task to stop the work: nothing is delivered from then on, and the request's slot
        and KV are free within one step. EngineError when the engine died. What `deliver` raises
        ends this request alone, and is raised here. `deliver` cannot hold an engine up: what nobody
        has read yet is bounded by the request's max_tokens.
        """
        ...


@runtime_checkable
class Launches(Protocol):
    """An engine whose process can begin before all is there that `start` is to come with."""

    async def launch(self) -> None:
        """Begin the process, which imports and holds no device; `start` goes on with it, and `stop`
        ends it. EngineError where there can be none."""
        ...


@runtime_checkable
class Sleeps(Protocol):
    """An engine with a sleep of its own; every other one is stopped and started instead."""

    async def sleep(self, level: int) -> str:
        """Give memory back, and say in a sentence what that came to. No request is in it then."""
        ...

    async def wake(self) -> None:
        """Return to where knobs can be applied and requests served."""
        ...


@runtime_checkable
class Pauses(Protocol):
    """An engine that can stand still between two steps."""

    async def pause(self) -> None:
        """Take no further step: requests in the engine keep slot and KV."""
        ...

    async def resume(self) -> None:
        """Go on as if nothing was."""
        ...


@runtime_checkable
class Evicts(Protocol):
    """An engine that can preempt running requests on demand."""

    async def evict(self) -> tuple[str, ...]:
        """Preempt what runs above `max_num_seqs` at once; the ids of those. They lose no token."""
        ...


@runtime_checkable
class Counts(Protocol):
    """An engine that counts the memory it holds on GPUs."""

    async def device_bytes(self) -> int | None:
        """By its own count: less than the driver's, which also counts the context of each process.
        None where it runs on no GPU."""
        ...


@runtime_checkable
class CachesPrefixes(Protocol):
    """An engine whose cache of known beginnings of prompts can be emptied."""

    async def reset_cache(self) -> None:
        """Forget all cached prefixes that no running request holds."""
        ...


@runtime_checkable
class ChecksSchemas(Protocol):
    """An engine that can constrain a reply to a JSON schema, a regex or a choice."""

    async def check_form(self, structured: Structured) -> None:
        """ParamError with the reason where no reply can be constrained to it, as far as this shows
        before the request is taken. Also while the engine sleeps."""
        ...


@runtime_checkable
class ReportsProgress(Protocol):
    """An engine with a stage of its start that takes long."""

    @property
    def busy_with(self) -> str:
        """What it does now, as "compiling kernels"; "" where there is nothing to report. From any
        thread."""
        ...


@runtime_checkable
class HasApi(Protocol):
    """An engine that brings an HTTP application of its own."""

    @property
    def api_paths(self) -> Mapping[str, str]:
        """Its paths, each with its method; everything else is answered by our own routes."""
        ...

    @property
    def api_fields(self) -> Mapping[str, Mapping[str, Any]]:
        """Of each path with a body the fields that it reads, once there is an application: None
        for a field that holds what it likes, a mapping of the same kind where it holds objects."""
        ...

    async def api(self, submit: Submit) -> ASGIApp:
        """The application for `api_paths`, whose every request goes through `submit`. Ask for it
        anew for each request: a restarted engine has another. EngineError while there is none."""
        ...


class Submit(Protocol):
    """How an engine's own application submits a request to admission control. Tenant and arrival
    are added there; `priority` None leaves that to it too."""

    def __call__(
        self, *, id: str, prompt_ids: tuple[int, ...], sampling: SamplingParams,
        priority: int | None, payload: Repeatable,
    ) -> Submission: ...


class Submission(Protocol):
    """A submitted request: iterate its chunks once, cancel it at any time."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    def cancel(self) -> None: ...


class Repeatable(Protocol):
    """A payload whose chunks carry `raw` objects: how a reply to it can be kept."""

    @property
    def key(self) -> Hashable | None:
        """Equal for requests that must get the same reply; None where chance has a part in it."""
        ...

    def copied(self, raw: Any) -> Any:
        """Return a copy that its reader may change."""
        ...

    def joined(self, raws: Sequence[Any]) -> Any:
        """All of one reply's raw objects as one; they are used up."""
        ...


ABILITIES: Mapping[str, type] = {
    "sleep": Sleeps,
    "pause": Pauses,
    "evict": Evicts,
    "reset_cache": CachesPrefixes,
    "structured_outputs": ChecksSchemas,
    "device_bytes": Counts,
    "progress": ReportsProgress,
    "api": HasApi,
}
"""The optional protocols, each by the word that pages and tables show for it."""


def abilities(engine: object) -> tuple[str, ...]:
    """What a running engine, or an engine's class, can do beyond `Engine`: words to show."""
    return tuple(word for word, protocol in ABILITIES.items() if isinstance(engine, protocol))


def no_option(engine: str, name: str, known: Sequence[str]) -> TypeError:
    """For the engine to raise. Where a server is started, knobs are given beside options."""
    hint = meant(name, [*SPECS, *known], listed=known, called="its options:")
    return TypeError(f"the {engine} engine has no option {name!r}{hint}")
