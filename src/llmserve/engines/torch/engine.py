"""The torch engine as the kernel sees it: messages to a child process, chunks back from it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from llmserve.clock import Clock
from llmserve.core import Chunk, ParamError, Request
from llmserve.engines import EngineError, EngineInfo, StepSink, Tokenizer
from llmserve.engines.ceilings import clamp
from llmserve.engines.child import Child
from llmserve.engines.torch.messages import (
    Abort,
    Adopted,
    Delta,
    Failed,
    FromChild,
    Load,
    Ready,
    Retune,
    Stepped,
    Submit,
    ToChild,
)
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.tokenizer import ModelTokenizer, open_tokenizer
from llmserve.knobs import Applied, Knobs, differences

WORKER = "llmserve.engines.torch.worker"


class RequestFailed(RuntimeError):
    """One request failed inside the engine; the engine and all others go on."""


class TorchEngine:
    """Satisfies `engines.Engine`. One loop's; may be started again after `stop`.

    Raises TypeError for an unknown option and ValueError for a wrong value (`TorchOptions`).
    """

    def __init__(self, *, sink: StepSink, clock: Clock, **options: object) -> None:
        self._sink = sink
        self._clock = clock
        self._options = parse(options)
        self._ceilings = {
            "max_num_seqs": self._options.max_num_seqs_ceiling,
            "max_num_batched_tokens": self._options.max_num_batched_tokens_ceiling,
        }
        self._knobs, _ = clamp(Knobs(), self._ceilings)
        self._run: _Run | None = None
        self._info: EngineInfo | None = None
        self._tokenizer: ModelTokenizer | None = None
        self._vocab_size = 0
        self._retunes = 0

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("the torch engine is not started")
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise EngineError("the torch engine is not started")
        return self._tokenizer

    async def start(self) -> None:
        if self._run is not None and not self._run.over:
            return
        await self.stop()
        run = self._run = _Run(self._sink, self._environment())
        try:
            await run.child.start()
            run.say(Load(self._options, self._knobs.as_dict()))
            ready = await run.ready
            self._tokenizer = await asyncio.to_thread(
                open_tokenizer, Path(ready.folder), self._options.trust_remote_code
            )
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError | ValueError | EngineError):
                model = self._options.model_path
                raise EngineError(f"the torch engine did not start with {model}: {error}") from None
            raise
        self._vocab_size = ready.vocab_size
        self._info = self._describe(ready, run.child.pid, self._tokenizer.has_chat)

    async def stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await run.stop()

    async def apply(self, knobs: Knobs) -> Applied:
        asked_at = self._clock.now()
        run = self._running()
        before, (values, clamps) = self._knobs, clamp(knobs, self._ceilings)
        self._retunes += 1
        step = await run.ask(Retune(self._retunes, values.as_dict()))
        self._knobs = values
        return Applied(
            values=values,
            changed=differences(before, values),
            clamped=clamps,
            adopted_step=step,
            ms=(self._clock.now() - asked_at) * 1e3,
        )

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks; those that wait to be read are bounded by the request's max_tokens.

        Raises ParamError for a prompt that cannot run, RequestFailed where the engine failed on
        this request alone.
        """
        self._check(request)
        run = self._running()
        inbox = run.open(request)
        try:
            while True:
                chunk = await inbox.next()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            run.close(request.id)

    def _running(self) -> _Run:
        if self._run is None:
            raise EngineError("the torch engine is not running")
        return self._run

    def _check(self, request: Request) -> None:
        ids, longest = request.prompt_ids, self.info.max_model_len
        if not ids:
            raise ParamError("prompt", "the prompt is empty")
        if len(ids) >= longest:
            raise ParamError("prompt", f"a prompt of {len(ids)} tokens leaves none of {longest}")
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise ParamError("prompt", f"token ids are within 0 and {self._vocab_size - 1}")

    def _environment(self) -> dict[str, str]:
        threads = str(self._options.thread_count)
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": self._options.omp_wait_policy,
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        if self._options.is_folder:
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def _describe(self, ready: Ready, pid: int, has_chat: bool) -> EngineInfo:
        return EngineInfo(
            engine="torch",
            model_id=self._options.model_id,
            max_model_len=ready.max_model_len,
            kv_capacity_tokens=ready.kv_capacity_tokens,
            vocab_size=ready.vocab_size,
            ceilings=self._ceilings,
            supports=frozenset({"chat"} if has_chat else ()),
            device=ready.device,
            dtype=ready.dtype,
            pids=(pid,),
            details=ready.details,
        )


class _Inbox:
    """What came for one request and was not read yet; drained as one chunk."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self.finished = False

    def put(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.finished = True
        self._deltas.append(delta)
        self._news.set()

    def fail(self, failure: Exception) -> None:
        self._failure, self.finished = failure, True
        self._news.set()

    async def next(self) -> Chunk:
        await self._news.wait()
        self._news.clear()
        deltas, self._deltas = self._deltas, []
        if not deltas:
            assert self._failure is not None, "news are deltas or a failure"
            raise self._failure
        if self._failure is not None:
            self._news.set()  # what came before the failure is still told first
        last = deltas[-1]
        if last.error is not None:
            raise RequestFailed(last.error)
        if len(deltas) == 1:
            text, token_ids, logprobs = last.text, last.token_ids, last.logprobs
        else:
            text = "".join(delta.text for delta in deltas)
            token_ids = tuple(token for delta in deltas for token in delta.token_ids)
            told = last.logprobs is not None
            every = (one for delta in deltas for one in delta.logprobs or ())
            logprobs = tuple(every) if told else None
        return Chunk(
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )


class _Run:
    """One life of the child process, and all who wait for it."""

    def __init__(self, sink: StepSink, environment: dict[str, str]) -> None:
        self.child = Child(WORKER, environment, self)
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._sink = sink
        self._inboxes: dict[str, _Inbox] = {}
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._cause: EngineError | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromChild).decode
        self._burial: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self._cause is not None

    def say(self, message: ToChild) -> None:
        self.child.send(self._encode(message))

    async def ask(self, message: Retune) -> int:
        self._refuse_when_over()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[message.number] = answer
        self.say(message)
        try:
            return await answer
        finally:
            del self._asked[message.number]

    def open(self, request: Request) -> _Inbox:
        self._refuse_when_over()
        if request.id in self._inboxes:
            raise ParamError("id", f"request {request.id!r} is already running")
        inbox = self._inboxes[request.id] = _Inbox()
        self.say(Submit(request.id, request.prompt_ids, request.sampling))
        return inbox

    def close(self, request_id: str) -> None:
        if not self._inboxes.pop(request_id).finished:
            self.say(Abort(request_id))

    async def stop(self) -> None:
        self._end(EngineError("the torch engine was stopped"))
        await self.child.stop()
        if self._burial is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._burial

    def child_said(self, frame: bytes) -> None:
        message = self._decode(frame)
        match message:
            case Stepped():
                if message.record is not None:
                    self._sink(message.record)
                for delta in message.deltas:
                    inbox = self._inboxes.get(delta.id)
                    if inbox is not None:  # else it was aborted meanwhile
                        inbox.put(delta)
            case Adopted():
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message.step)
            case Ready():
                self.ready.set_result(message)
            case Failed():
                self._end(EngineError(message.message))

    def child_ended(self) -> None:
        if not self.over:
            self._burial = asyncio.get_running_loop().create_task(self._bury())

    async def _bury(self) -> None:
        """Tell everyone how it ended, in its own last words."""
        status = await self.child.exit_status()
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        words = self.child.last_lines()
        said = f"; its last lines were:\n{words}" if words else ""
        self._end(EngineError(f"the torch engine's process died ({how}){said}"))

    def _end(self, error: EngineError) -> None:
        if self.over:
            return
        self._cause = error
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # seen, for it may be that nobody waits for it any more
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(error)
        for inbox in self._inboxes.values():
            inbox.fail(error)

    def _refuse_when_over(self) -> None:
        if self._cause is not None:
            raise self._cause
