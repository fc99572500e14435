"""vLLM's AsyncLLM as an `engines.Engine`: adapter, live knobs, a record of every step."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import traceback
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import psutil

from llmserve.core.clock import Clock
from llmserve.core.knobs import Applied, Clamp, Knobs, differences
from llmserve.core.types import Chunk, ParamError, Request, Structured
from llmserve.engines.base import Deliver, EngineError, EngineInfo, StepSink, Submit
from llmserve.engines.limits import clamp
from llmserve.engines.process.delivery import LoopTurn
from llmserve.engines.process.processes import end
from llmserve.engines.process.threads import in_own_thread
from llmserve.engines.vllm import private_api
from llmserve.engines.vllm.api_fields import fields_of_routes
from llmserve.engines.vllm.api_server import API_OPTIONS, API_PATHS, build_api, open_api
from llmserve.engines.vllm.convert import Payload, to_payload
from llmserve.engines.vllm.options import parse
from llmserve.engines.vllm.output_hook import OutputHook
from llmserve.engines.vllm.process_files import Launch
from llmserve.engines.vllm.startup import (
    UNSUPPORTED,
    create,
    describe,
    forget_own_metrics,
    import_vllm,
    not_ours,
    start_failure,
    warn_of_release,
)
from llmserve.engines.vllm.step_note import take_note, to_record
from llmserve.engines.vllm.tokenizer import VllmTokenizer

log = logging.getLogger(__name__)

STOP_GRACE_S = 8.0
"""An orderly end takes 4 s, on a busy machine 7; a killed one leaves shared memory behind."""
DEATH_POLL_S = 0.25
_NO_FORM = "the form cannot be kept to: vLLM ended the request, as it does where no grammar fits it"
_NO_FEWER = "a request takes so many at once that speculates, or whose prompt may not be chunked"


class VllmEngine:
    """Satisfies `engines.base.Engine`, and most of what is optional there."""

    api_paths = API_PATHS
    api_fields: Mapping[str, Mapping[str, Any]] = {}

    def __init__(self, *, sink: StepSink, clock: Clock, **options: object) -> None:
        args_class, on_cpu = import_vllm()
        warn_of_release()
        known = {field.name for field in dataclasses.fields(args_class)} | API_OPTIONS
        self._options = parse(options, known, on_cpu=on_cpu)
        self._sink, self._clock = sink, clock
        self._llm: Any = None
        self._launch: Launch | None = None
        self._family: list[psutil.Process] = []
        self._info: EngineInfo | None = None
        self._knobs = Knobs()
        self._fewest_tokens = 1
        self._by_priority = False
        self._weights_dropped = False
        self._api: tuple[Any, Submit, Any] | None = None
        self._api_lock = asyncio.Lock()
        self._turn = LoopTurn()
        self._ending: asyncio.Future[None] | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("the vllm engine is not started")
        return self._info

    @property
    def tokenizer(self) -> VllmTokenizer:
        return self._tokenizer

    async def start(self) -> None:
        if self._llm is not None:
            return
        if lost := private_api.lost():
            raise EngineError(not_ours(lost))
        launch = self._launch = Launch()
        try:
            self._llm = await in_own_thread(partial(create, self._options, launch))
            await self._get_to_know(launch)
        except asyncio.CancelledError:
            launch.given_up = True
            await self.stop()
            raise
        except Exception as error:
            words = launch.last_words()
            await self.stop()
            log.debug("vLLM did not start", exc_info=error)
            raise EngineError(start_failure(error, words)) from error

    async def stop(self) -> None:
        if self._launch is not None:
            self._ending = asyncio.ensure_future(self._end(self._llm, self._launch))
            self._llm = self._launch = self._api = None
        if self._ending is not None:  # one cancelled over it leaves it to the next
            await asyncio.shield(self._ending)

    async def _end(self, llm: Any, launch: Launch) -> None:
        family = self._family or launch.processes()
        self._family = []
        if self._info is not None:
            self._info = msgspec.structs.replace(self._info, pids=())
        launch.remove()  # first: a kernel on its way out is killed before vLLM has ended
        if llm is not None:
            with suppress(Exception):  # of a dead engine; what counts is checked below
                await in_own_thread(partial(llm.shutdown, timeout=STOP_GRACE_S))
                context = llm.engine_core.resources.ctx  # vLLM leaves it to the collector
                await asyncio.wait_for(in_own_thread(partial(context.destroy, linger=0)), 2)
        await in_own_thread(partial(end, family, 1.0))
        launch.remove()

    @property
    def dead(self) -> bool:
        return self._llm is not None and bool(self._llm.errored)

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
        paused = self._running().pause_generation(mode="keep", clear_cache=False)
        await self._while_alive(paused)

    async def resume(self) -> None:
        await self._while_alive(self._running().resume_generation())

    async def reset_cache(self) -> None:
        """Forget all cached prefixes that no running request holds."""
        await self._while_alive(self._running().reset_prefix_cache())

    async def sleep(self, level: int = 1) -> str:
        """Give memory back until `wake`, and say in a sentence what that came to. Requests in the
        engine finish first where it can sleep, and end where it is stopped instead."""
        llm = self._running()
        if not llm.vllm_config.model_config.enable_sleep_mode:
            await self.stop()
            return (
                "this vLLM was not started with enable_sleep_mode=True (a CPU build has none): "
                "the engine was stopped instead, and wake starts it again"
            )
        await self._while_alive(llm.sleep(level, mode="wait"))
        self._weights_dropped = level == 2
        weights = "moved to host memory" if level == 1 else "dropped"
        return f"vLLM sleeps at level {level}: its KV is freed, its weights are {weights}"

    async def wake(self) -> None:
        """Back to where knobs can be applied and requests served."""
        if self._llm is None:
            await self.start()
            return
        llm = self._running()
        await self._while_alive(llm.wake_up(["weights"]))
        if self._weights_dropped:
            await self._while_alive(llm.collective_rpc("reload_weights"))
            self._weights_dropped = False
        await self._while_alive(llm.wake_up(["kv_cache"]))

    async def check_form(self, structured: Structured) -> None:
        """Check nothing: vLLM reads a schema as it takes the request, and what it then cannot keep
        to ends the request in `generate` with ParamError."""

    async def device_bytes(self) -> int | None:
        if self.info.device != "cuda":
            return None
        answer: int = await self._call("llmserve_device_bytes")
        return answer

    async def generate(self, request: Request, deliver: Deliver) -> None:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        own, llm = isinstance(request.payload, Payload), self._running()
        asked = request.payload if own else to_payload(request)
        priority = request.priority if self._by_priority else 0
        try:
            collector = await llm.add_request(
                request.id, asked.prompt, asked.params, priority=priority, **asked.options
            )
            alone = not own and not request.sampling.max_tokens
            if asked.params.structured_outputs is not None:
                deliver = partial(_judge, deliver)
            hook = OutputHook(collector, self._turn, deliver, raw=own, prompt_alone=alone)
            await hook.drained()
        except EngineDeadError as error:
            raise self._death() from error
        except VLLMClientError as error:
            raise ParamError(_blamed(error), str(error.args[0])) from error
        except BaseException:
            await llm.abort(request.id)
            raise

    async def api(self, submit: Submit) -> Any:
        """vLLM's own application, made at the first request for it."""
        llm = self._running()
        async with self._api_lock:
            if self._api is None or self._api[:2] != (llm, submit):
                args, extra = self._options.engine_args, self._options.api_args
                template = self._tokenizer.chat_template
                app = await asyncio.to_thread(build_api, llm, args, extra, template)
                await open_api(app, llm, submit)
                self.api_fields = fields_of_routes(app, API_PATHS)
                self._api = (llm, submit, app)
            return self._api[2]

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineError("vLLM is not running; session.wake() starts it")
        if self._llm.errored:
            raise self._death()
        return self._llm

    async def _call(self, method: str, *args: object) -> Any:
        """A method of the engine core, between two of its steps."""
        core = self._running().engine_core
        return await self._while_alive(core.call_utility_async(method, *args))

    async def _while_alive(self, question: Coroutine[Any, Any, Any]) -> Any:
        """EngineError when the engine dies over it, which vLLM's own client would wait for for
        ever."""
        llm, call = self._llm, asyncio.ensure_future(question)
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
        for name in ("max_num_batched_tokens", "long_prefill_token_threshold"):
            asked, got = getattr(values, name), self._fewest_tokens
            if 0 < asked < got:
                got_value: dict[str, Any] = {name: got}
                values = dataclasses.replace(values, **got_value)
                clamps += (Clamp(name, asked, got, _NO_FEWER),)
        for name, why in UNSUPPORTED.items():
            asked_value, only = getattr(values, name), getattr(Knobs(), name)
            if asked_value != only:
                values = values.taking((name,), Knobs())
                clamps += (Clamp(name, asked_value, only, why),)
        return values, clamps

    async def _get_to_know(self, launch: Launch) -> None:
        from vllm.renderers.chat_utils import load_chat_template

        llm = self._llm
        forget_own_metrics(llm)
        self._family = launch.processes()
        self._listen(llm.engine_core)
        config = llm.vllm_config
        self._by_priority = config.scheduler_config.policy == "priority"
        template = load_chat_template(self._options.api_args.get("chat_template"))
        self._tokenizer = VllmTokenizer(llm.get_tokenizer(), template)
        answer: dict[str, int] = await self._call("llmserve_describe")
        self._fewest_tokens = answer.pop("fewest_tokens")
        self._info = describe(
            self._options, config, answer, self._family, chat=self._tokenizer.has_chat
        )

    def _listen(self, core: Any) -> None:
        """Report each step before vLLM looks at its outputs, so before delivery of its chunks."""
        fetch, sink = core.get_output_async, self._sink
        capacity = core.vllm_config.cache_config.kv_cache_size_tokens or 0

        async def get_output_async() -> Any:
            outputs = await fetch()
            stats = outputs.scheduler_stats
            if stats is not None and (note := take_note(stats)) is not None:
                sink(to_record(note, stats, capacity))
            return outputs

        core.get_output_async = get_output_async


def _judge(deliver: Deliver, chunk: Chunk) -> None:
    """A constrained request that vLLM ends with an error alone is its schema's doing, not ours."""
    if chunk.finish_reason == "error":
        raise ParamError("structured_outputs", _NO_FORM)
    deliver(chunk)


def _blamed(error: Any) -> str:
    """The field that vLLM's error is about; of a schema it does not say that."""
    frames = (frame.name for frame in traceback.extract_tb(error.__traceback__))
    about_schema = any("structured_output" in name for name in frames)
    return error.parameter or ("structured_outputs" if about_schema else "prompt")
