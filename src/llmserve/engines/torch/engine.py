"""The torch engine as the kernel sees it: messages to a child process, chunks back from it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from llmserve.core.clock import Clock
from llmserve.core.types import ParamError, Request, Structured, blame
from llmserve.core.validation import wholes
from llmserve.engines.base import Deliver, EngineError, EngineInfo, StepSink
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.engine import ProcessEngine
from llmserve.engines.process.messages import Ready, Weigh
from llmserve.engines.tokenizer import Tokenizer
from llmserve.engines.torch import cpu_isa
from llmserve.engines.torch.messages import LoadModel
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.text.tokenizer import ModelTokenizer, open_tokenizer

WORKER = "llmserve.engines.torch.worker"


class TorchEngine(ProcessEngine):
    """Satisfies `engines.base.Engine`. One loop's; may be started again after `stop`.

    Raises TypeError for an unknown option and ValueError for a wrong value (`TorchOptions`).
    """

    def __init__(self, *, sink: StepSink, clock: Clock, **options: object) -> None:
        self._options = parse(options)
        self._cpu_isa = cpu_isa.limit()
        ceilings = {
            "max_num_seqs": self._options.max_num_seqs_ceiling,
            "max_num_batched_tokens": self._options.max_num_batched_tokens_ceiling,
        }
        super().__init__("the torch engine", sink, clock, ceilings)
        self._launched = False
        """A process waits for `start`."""
        self._info: EngineInfo | None = None
        self._tokenizer: ModelTokenizer | None = None
        self._details: dict[str, str] = {}
        self._vocab_size = 0
        self._constrains = False

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

    async def launch(self) -> None:
        """Begin the process, which imports torch and then waits for what `start` has to say."""
        await self.stop()
        self._details.clear()
        run = self._run = ProcessClient(
            "torch", WORKER, self._sink, self._environment(), self._reformed
        )
        try:
            await run.child.start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):
                raise self._not_started(error) from None
            raise
        self._launched = True

    async def start(self) -> None:
        if not self._launched:
            if self._run is not None and not self._run.over:
                return
            await self.launch()
        self._launched = False
        run, early = self._running(), asyncio.create_task(self._open_early())
        try:
            run.say(LoadModel(self._options, self._knobs))
            ready = await run.ready
            self._tokenizer = await early or await self._open(Path(ready.folder))
        except BaseException as error:
            early.cancel()
            await self.stop()
            if isinstance(error, OSError | ValueError | EngineError):
                raise self._not_started(error) from None
            raise
        self._vocab_size = ready.vocab_size
        self._constrains = ready.structured_outputs
        self._info = self._describe(ready, run.child.pid, self._tokenizer.has_chat)

    def _not_started(self, error: BaseException) -> EngineError:
        model = self._options.model_path
        return EngineError(f"the torch engine did not start with {model}: {error}")

    async def _open_early(self) -> ModelTokenizer | None:
        """While the process loads. None where the files are yet to come, or do not open: what is
        wrong with a model is the process's to say first."""
        if not self._options.is_folder:
            return None
        try:
            return await self._open(Path(self._options.model_path))
        except Exception:  # raised again where the process finds nothing wrong
            return None

    async def _open(self, folder: Path) -> ModelTokenizer:
        return await asyncio.to_thread(open_tokenizer, folder, self._options.trust_remote_code)

    def _reformed(self, details: dict[str, str]) -> None:
        """The model computes in another form; it may be before the start is over."""
        self._details |= details
        if self._info is not None:
            known = {**self._info.details, **details}
            self._info = msgspec.structs.replace(self._info, details=known)

    async def stop(self) -> None:
        self._launched = False
        await super().stop()

    @property
    def busy_with(self) -> str:
        return "" if self._run is None else self._run.busy_with

    async def device_bytes(self) -> int | None:
        if not self.info.device.startswith("cuda"):
            return None
        return await self._running().ask(Weigh(next(self._questions)))

    async def check_form(self, form: Structured) -> None:
        from llmserve.engines.guided.grammars import check

        if not self._constrains:
            said = "a form needs the bytes of tokens, which this model's tokenizer does not give"
            raise ParamError("structured_outputs", said)
        try:
            await asyncio.to_thread(check, form)
        except ValueError as error:
            raise ParamError("structured_outputs", f"the form cannot be kept to: {error}") from None

    async def generate(self, request: Request, deliver: Deliver) -> None:
        """Raises ParamError for a prompt that cannot run, `RequestFailed` where the engine
        failed on this request alone.
        """
        self._check(request)
        await super().generate(request, deliver)

    def _check(self, request: Request) -> None:
        ids, longest = request.prompt_ids, self.info.max_model_len
        if not ids:
            raise ParamError("prompt", "the prompt is empty")
        if len(ids) >= longest:
            raise ParamError("prompt", f"a prompt of {len(ids)} tokens leaves none of {longest}")
        sampling = request.sampling
        for param, given in (
            ("prompt", ids),
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", [token for token, _ in sampling.logit_bias]),
        ):
            try:
                wholes("a token id", given, 0, self._vocab_size - 1)
            except ValueError as error:
                raise blame(param, error) from None

    def _environment(self) -> dict[str, str]:
        threads = str(self._options.thread_count)
        environment = {
            **self._options.openmp_environment,
            **self._options.memory_environment,
            **cpu_isa.environment(self._cpu_isa),
            "MKL_NUM_THREADS": threads,
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
            block_size=self._options.block_size,
            vocab_size=ready.vocab_size,
            ceilings=self._ceilings,
            device=ready.device,
            dtype=ready.dtype,
            pids=(pid,),
            details=ready.details
            | self._details
            | {"chat template": "yes" if has_chat else "none"},
        )
