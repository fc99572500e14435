"""vLLM's AsyncLLM as an `engines.Engine`: adapter, live knobs, a record of every step."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

import psutil

from llmserve.clock import Clock
from llmserve.core import Chunk, Request
from llmserve.engines import EngineError, EngineInfo, StepSink
from llmserve.engines.ceilings import clamp
from llmserve.engines.vllm import INSTALL, SUPPORTED, contract
from llmserve.engines.vllm.launch import Launch, end
from llmserve.engines.vllm.options import VllmOptions, parse
from llmserve.engines.vllm.parent_watch import Watch
from llmserve.engines.vllm.replies import to_chunk, to_params
from llmserve.engines.vllm.tokenizer import VllmTokenizer
from llmserve.engines.vllm.wire import take_note, to_record
from llmserve.knobs import Applied, Clamp, Knobs, differences

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_GRACE_S = 8.0
"""An orderly end takes 4 s, on a busy machine 7; a killed one leaves shared memory behind."""
DEATH_POLL_S = 0.25
UNSUPPORTED = {
    "batching": "vLLM batches continuously and in no other way",
    "batch_window_ms": "there is no closed batch in vLLM to wait for",
    "min_decode_slots": "vLLM's scheduler keeps no places for decodes",
}


class VllmEngine:
    """Satisfies `engines.Engine`, and `pause`, `resume`, `evict`, `reset_cache` beside it."""

    def __init__(self, *, sink: StepSink, clock: Clock, **options: object) -> None:
        args_class, on_cpu = _import_vllm()
        known = {field.name for field in dataclasses.fields(args_class)}
        self._options = parse(options, known, on_cpu=on_cpu)
        self._sink, self._clock = sink, clock
        self._llm: Any = None
        self._launch: Launch | None = None
        self._family: list[psutil.Process] = []
        self._knobs = Knobs()
        self._fewest_tokens = 1
        self._by_priority = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def tokenizer(self) -> VllmTokenizer:
        return self._tokenizer

    async def start(self) -> None:
        if self._llm is not None:
            return
        if lost := contract.moved():
            raise EngineError(_not_ours(lost))
        launch = self._launch = Launch()
        try:
            self._llm = await _in_own_thread(partial(create, self._options, launch))
            await self._get_to_know(launch)
        except asyncio.CancelledError:
            await self.stop()
            raise
        except Exception as error:
            words = launch.last_words()
            await self.stop()
            log.debug("vLLM did not start", exc_info=error)
            raise EngineError(_start_failure(error, words)) from error

    async def stop(self) -> None:
        llm, self._llm = self._llm, None
        launch, self._launch = self._launch, None
        if launch is None:
            return
        family = self._family or launch.processes()
        self._family = []
        if llm is not None:
            with suppress(Exception):  # of a dead engine; what counts is checked below
                await asyncio.to_thread(llm.shutdown, timeout=STOP_GRACE_S)
                context = llm.engine_core.resources.ctx  # vLLM leaves it to the collector
                await asyncio.wait_for(_in_own_thread(partial(context.destroy, linger=0)), 2)
        await asyncio.to_thread(end, family, 1.0)
        launch.remove()

    async def apply(self, knobs: Knobs) -> Applied:
        asked_at = self._clock.now()
        values, clamps = self._clamp(knobs)
        step: int = await self._call(
            "llmserve_adopt",
            {
                "max_num_seqs": values.max_num_seqs,
                "max_num_batched_tokens": values.max_num_batched_tokens,
                "long_prefill_token_threshold": values.long_prefill_token_threshold,
            },
        )
        before, self._knobs = self._knobs, values
        return Applied(
            values=values,
            changed=differences(before, values),
            clamped=clamps,
            adopted_step=step,
            ms=(self._clock.now() - asked_at) * 1e3,
        )

    async def evict(self) -> tuple[str, ...]:
        """Preempt what runs above `max_num_seqs` at once, instead of letting it finish."""
        return tuple(await self._call("llmserve_evict"))

    async def pause(self) -> None:
        """Freeze: requests stay where they are, and go on after `resume` as if nothing was."""
        await self._running().pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        await self._running().resume_generation()

    async def reset_cache(self) -> None:
        """Forget all cached prefixes that no running request holds."""
        await self._running().reset_prefix_cache()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        outputs = self._running().generate(
            tokens_input(list(request.prompt_ids)),
            to_params(request.sampling),
            request.id,
            priority=request.priority if self._by_priority else 0,
        )
        first = True
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield to_chunk(output, first=first, raw=False)
                    first = False
        except EngineDeadError as error:
            raise self._death() from error

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineError("vLLM is not running")
        if self._llm.errored:
            raise self._death()
        return self._llm

    async def _call(self, method: str, *args: object) -> Any:
        """A method of the engine core, between two of its steps; EngineError when it died, which
        vLLM's own client would wait for for ever."""
        llm = self._running()
        call = asyncio.ensure_future(llm.engine_core.call_utility_async(method, *args))
        try:
            while not (await asyncio.wait({call}, timeout=DEATH_POLL_S))[0]:
                if llm.errored:
                    raise self._death()
            return call.result()
        finally:
            call.cancel()

    def _death(self) -> EngineError:
        words = self._launch.last_words() if self._launch is not None else ""
        return EngineError(f"the vLLM engine process died; its last lines:\n{words}".rstrip())

    def _clamp(self, knobs: Knobs) -> tuple[Knobs, tuple[Clamp, ...]]:
        values, clamps = clamp(knobs, self.info.ceilings)
        if values.max_num_batched_tokens < self._fewest_tokens:
            asked, got = values.max_num_batched_tokens, self._fewest_tokens
            values = values.changed({"max_num_batched_tokens": got})
            why = "a speculating request takes so many in a step"
            clamps += (Clamp("max_num_batched_tokens", asked, got, why),)
        for name, why in UNSUPPORTED.items():
            asked_value, only = getattr(values, name), getattr(Knobs(), name)
            if asked_value != only:
                values = values.changed({name: only})
                clamps += (Clamp(name, asked_value, only, why),)
        return values, clamps

    async def _get_to_know(self, launch: Launch) -> None:
        llm = self._llm
        self._family = launch.processes()
        self._listen(llm.engine_core)
        config = llm.vllm_config
        self._by_priority = config.scheduler_config.policy == "priority"
        self._tokenizer = VllmTokenizer(llm.get_tokenizer())
        told: dict[str, int] = await self._call("llmserve_describe")
        self._fewest_tokens = told.pop("fewest_tokens")
        self._info = _describe(
            self._options, config, told, self._family, chat=self._tokenizer.has_chat
        )

    def _listen(self, core: Any) -> None:
        """Tell each step before vLLM looks at its outputs, thus before its chunks are yielded."""
        fetch, sink = core.get_output_async, self._sink
        capacity = core.vllm_config.cache_config.kv_cache_size_tokens or 0

        async def get_output_async() -> Any:
            outputs = await fetch()
            stats = outputs.scheduler_stats
            if stats is not None and (note := take_note(stats)) is not None:
                sink(to_record(note, stats, capacity))
            return outputs

        core.get_output_async = get_output_async


def create(options: VllmOptions, launch: Launch) -> Any:
    """An AsyncLLM whose engine process is ready; takes a minute, in a thread of its own."""
    from vllm.config.logging import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    args = dict(options.engine_args)
    args.setdefault("served_model_name", options.model_id)
    if "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        quiet = LoggingConfig(pylogging_config_file=str(launch.logging_config()))
        args.setdefault("logging_config", quiet)
    extra = {**(args.pop("additional_config", None) or {}), "llmserve": Watch(os.getpid())}
    with launch.surroundings():
        config = AsyncEngineArgs(
            **args, **options.ceilings, additional_config=extra
        ).create_engine_config(UsageContext.ENGINE_CONTEXT)
        scheduler = config.scheduler_config
        kind = "LiveAsyncScheduler" if scheduler.async_scheduling else "LiveScheduler"
        scheduler.scheduler_cls = f"llmserve.engines.vllm.live_scheduler.{kind}"
        return AsyncLLM.from_vllm_config(config)


def _describe(
    options: VllmOptions,
    config: Any,
    ceilings: dict[str, int],
    family: list[psutil.Process],
    *,
    chat: bool,
) -> EngineInfo:
    import vllm

    speculative = config.speculative_config
    return EngineInfo(
        engine="vllm",
        model_id=options.model_id,
        max_model_len=config.model_config.max_model_len,
        kv_capacity_tokens=config.cache_config.kv_cache_size_tokens or 0,
        vocab_size=config.model_config.get_vocab_size(),
        ceilings=ceilings,
        unsupported=UNSUPPORTED,
        supports=frozenset({"evict", "pause", "reset_cache"} | ({"chat"} if chat else set())),
        device=config.device_config.device_type,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        pids=tuple(process.pid for process in family),
        details={
            "vllm": vllm.__version__,
            "scheduling": "async" if config.scheduler_config.async_scheduling else "sync",
            "scheduling_policy": config.scheduler_config.policy,
            "prefix caching": str(config.cache_config.enable_prefix_caching),
            "speculation": "off" if speculative is None else str(speculative.method),
        },
    )


def _import_vllm() -> tuple[type, bool]:
    """AsyncEngineArgs and whether vLLM is to run on a CPU; EngineError where there is no vLLM."""
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(f"vLLM does not import ({error}). To install it: {INSTALL}") from error
    vllm_log = logging.getLogger("vllm")
    for handler in [one for one in vllm_log.handlers if one.name == "vllm"]:
        vllm_log.removeHandler(handler)  # it prints, from whatever thread, into whatever cell
    vllm_log.addHandler(logging.NullHandler())
    return AsyncEngineArgs, bool(current_platform.is_cpu())


def _not_ours(lost: list[str]) -> str:
    import vllm

    listed = "\n".join(f"- {one}" for one in lost)
    return (
        f"vLLM {vllm.__version__} has moved private names that live knobs and the batch tape need; "
        f"this llmserve is written for vLLM {SUPPORTED}:\n{listed}"
    )


def _start_failure(error: Exception, words: str) -> str:
    """vLLM's own message often only points "above", to the log, which is given here."""
    said = str(error).strip() or repr(error)
    return f"vLLM did not start: {said}" + (f"\nThe engine's last lines:\n{words}" if words else "")


async def _in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a new thread. When cancelled, its result is not waited for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]  # None only where T allows it
        else:
            result.set_exception(error)

    def main() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # handed to who waits
            failure = error
        with suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=main, name="llmserve-vllm-start", daemon=True).start()
    return await result
