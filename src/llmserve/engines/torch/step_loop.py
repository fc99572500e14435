"""The engine without its process: messages in, one `Stepped` per step out.

Invariants: a request has a slot in the KV store only while the planner has it running, and what
the planner's pool has shelved is on the store's shelf.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import deque
from collections.abc import Container, Iterable

import msgspec
import torch
from torch import Tensor

from llmserve.core.knobs import Knobs
from llmserve.core.types import ParamError, Request, SamplingParams, TokenLogprob
from llmserve.engines.batching.prefix_cache import Drop, Keep, Move, Reuse
from llmserve.engines.batching.sequence import Plan, Sequence
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.process.messages import (
    Abort,
    Adopted,
    Delta,
    FromChild,
    ResetCache,
    Retune,
    Stepped,
    SubmitRequest,
    ToChild,
    Weigh,
    Weighed,
)
from llmserve.engines.torch.kv.budget import device_bytes, is_shortage
from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.live_request import LiveRequest
from llmserve.engines.torch.model.batch_layout import Batch, BatchPart, arrange
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.sampling.guided_decoding import Grammars, Matcher
from llmserve.engines.torch.sampling.prompt_scores import PromptScores
from llmserve.engines.torch.sampling.sampler import Draws, draw
from llmserve.engines.torch.text.detokenize import Detokenizer

SHARE = 0.125
"""Of the cache, forgotten at a time where room for a slot is missing."""

Drawn = tuple[LiveRequest, int, TokenLogprob | None]


class TooLarge(Exception):
    """A request finds no memory though nothing else has any."""


class StepLoop:
    def __init__(
        self,
        model: FlatModel,
        detokenizer: Detokenizer,
        planner: StepPlanner,
        knobs: Knobs,
        seed: int | None = None,
        grammars: Grammars | None = None,
        kv: KvStore | None = None,
    ) -> None:
        self.planner = planner
        self.kv = KvStore(model.geometry) if kv is None else kv
        self._model = model
        self._detokenizer = detokenizer
        self._knobs = knobs
        self._grammars = grammars
        self._seeds = random.Random(seed)
        self._live: dict[str, LiveRequest] = {}
        self._scores: dict[str, PromptScores] = {}
        """Of requests whose prompts' log-probabilities are still to be sent."""
        self._index = 0
        self._unreported: Plan | None = None
        """No row of this plan could be run, so there was no record of it."""

    def handle(self, message: ToChild) -> FromChild | None:
        """Take a message in; what it must be answered with at once, if anything."""
        match message:
            case SubmitRequest():
                return self._submit(message)
            case Abort():
                self._forget(message.id)
                return None
            case Retune():
                self._knobs = message.knobs
                return Adopted(message.number, self._index)
            case ResetCache():
                self._clear_cache()
                return Adopted(message.number, self._index)
            case Weigh():
                return Weighed(message.number, device_bytes())

    def wake_in(self) -> float | None:
        """Seconds until there may be a step though no message comes; None where there is none."""
        now = time.monotonic()
        when = self.planner.wake_at(self._knobs, now)
        return None if when is None else max(0.0, when - now)

    def step(self) -> Stepped | None:
        """Run one step; None when there is nothing to do."""
        start = time.monotonic()
        plan = self.planner.plan(self._knobs, start)
        while plan is not None:
            drawn, error = self._try(plan)
            if self._unreported is not None:
                plan.report_too(self._unreported)
            if plan.rows:
                break
            self._unreported, plan = plan, self.planner.plan(self._knobs, start)
        if plan is None:
            return None
        self._unreported = None
        if error is not None:
            deltas = self._fail(plan, error)
        else:
            self.planner.commit(plan, {live.seq.id: token for live, token, _ in drawn})
            deltas = [self._advance(live, token, logprob) for live, token, logprob in drawn]
            if self._scores:
                deltas += self._end_prompts(plan)
        record = self.planner.record(plan, self._index, start, time.monotonic() - start)
        self._index += 1
        return Stepped(deltas, record)

    @property
    def idle(self) -> bool:
        """It holds no request."""
        return not self._live

    def compute_as(self, form: FlatModel) -> None:
        """Between two steps: the next one is computed in another form of the same model. In half
        precision cached prefixes are forgotten, for the two round their keys and values apart."""
        if self._model.geometry.dtype != torch.float32:
            self._clear_cache()
        self._model.compute_as(form)

    def check(self) -> None:
        """Assert the invariants, between two steps."""
        self.planner.check()
        self.kv.check()
        running = {seq.id for seq in self.planner.running}
        waiting = {seq.id for seq in self.planner.waiting}
        assert self._live.keys() == running | waiting
        assert len(self.kv) == len(running), "KV without a running request, or the reverse"
        assert self.kv.shelved == self.planner.pool.shelved, "the shelf is not what is counted"

    def _submit(self, message: SubmitRequest) -> Stepped | None:
        sampling = message.sampling
        request = Request(
            id=message.id, prompt_ids=message.prompt_ids, sampling=sampling, arrival=0.0
        )
        try:
            matcher = self._matcher(sampling)
            seq = self.planner.add(request, time.monotonic())
        except ValueError as error:
            param = error.param if isinstance(error, ParamError) else None
            return Stepped([_failed(message.id, str(error), param)])
        seed = self._seeds.getrandbits(63) if sampling.seed is None else sampling.seed
        draws = Draws(
            sampling,
            seed,
            prompt=message.prompt_ids,
            ends=self._model.eos_ids,
            matcher=matcher,
        )
        special = not sampling.skip_special_tokens
        stream = self._detokenizer.open(message.prompt_ids, special=special)
        self._live[message.id] = LiveRequest(seq, draws, stream)
        if sampling.prompt_logprobs is not None:
            self._scores[message.id] = PromptScores(message.prompt_ids, sampling.prompt_logprobs)
        return None

    def _matcher(self, sampling: SamplingParams) -> Matcher | None:
        structured = sampling.structured_outputs
        if structured is None:
            return None
        try:
            if self._grammars is None:
                raise ValueError("this model's tokenizer allows no structured outputs")
            return self._grammars.open(structured, sampling.max_tokens)
        except ValueError as error:
            raise ParamError("structured_outputs", str(error)) from None

    def _try(self, plan: Plan) -> tuple[list[Drawn], str | None]:
        """Run what there is memory for of a plan; what was drawn, or why all of it must end."""
        try:
            self._move(plan)
            return self._run(plan), None
        except Exception as error:
            traceback.print_exc()
            torch.zeros(1, device=self._model.geometry.device).item()  # a dead device raises here
            self._clear_cache()  # moves were left half made
            self._release(plan.preempted)
            if isinstance(error, TooLarge):
                return [], str(error)
            return [], f"the engine failed in its step: {error!r}"

    def _run(self, plan: Plan) -> list[Drawn]:
        """Compute the plan's rows and draw a token for each that samples. Where memory is short
        there is less to do each time, so it ends."""
        while plan.rows:
            computing = False
            try:
                for row in plan.rows:
                    self.kv.reserve(row.seq.id, len(row.seq.tokens), row.start)
                computing = True
                return self._compute(plan)
            except Exception as error:
                if not is_shortage(error):
                    raise
                self._make_way(plan, error, computing)
        return []

    def _compute(self, plan: Plan) -> list[Drawn]:
        rows = {row.seq.id: row for row in plan.rows}
        batch = arrange(
            [BatchPart(row.seq.id, row.start, row.tokens) for row in plan.rows], self.kv
        )
        tokens: list[int] = []
        wanted: list[int] = []
        drawing: list[LiveRequest] = []
        for part in batch.order:
            row = rows[part.owner]
            tokens += row.seq.tokens[part.start : part.start + part.tokens]
            if row.samples:
                wanted.append(len(tokens) - 1)
                drawing.append(self._live[part.owner])
        if self._scores:
            logits = self._score(batch, tokens, wanted)
        else:
            logits = self._model.forward(batch, tokens, wanted)
        if not drawing:
            return []
        drawn, logprobs = draw(logits, [live.draws for live in drawing])
        return list(zip(drawing, drawn, logprobs, strict=True))

    def _score(self, batch: Batch, tokens: list[int], drawing: list[int]) -> Tensor:
        """Logits of the rows that draw; those of prompts are scored on the way. The planner says
        of how many there may be logits at once."""
        wanted: list[int] = []
        scoring: list[tuple[PromptScores, int]] = []
        first = 0
        for part in batch.order:
            scores = self._scores.get(part.owner)
            if scores is not None and (asked := scores.wanted(part.start, part.tokens)):
                scoring.append((scores, len(asked)))
                wanted += [first + at - part.start for at in asked]
            first += part.tokens
        logits = self._model.forward(batch, tokens, wanted + drawing)
        at = 0
        for scores, count in scoring:
            scores.add(logits[at : at + count])
            at += count
        return logits[at:]

    def _end_prompts(self, plan: Plan) -> list[Delta]:
        """The ends of requests that are for the prompt alone, once that is computed."""
        ended = [row.seq for row in plan.rows if row.seq.id in self._scores and row.seq.full]
        deltas = [
            Delta(
                id=seq.id,
                text="",
                token_ids=(),
                logprobs=None if seq.request.sampling.logprobs is None else (),
                finish_reason="length",
                prompt_logprobs=self._scores[seq.id].found,
            )
            for seq in ended
        ]
        for seq in ended:
            self._forget(seq.id)
        return deltas

    def _make_way(self, plan: Plan, error: Exception, computing: bool) -> None:
        """What is cached goes first; then the newest request, or while computing half of them; and
        of one alone its KV, to be computed anew where it need not be copied."""
        if self._forget_some(1.0 if computing else SHARE):
            return
        running = [*self.planner.running]
        if len(running) == 1 and (computing or running[0].id not in self.kv):
            raise TooLarge(
                f"memory ran out with this request alone ({error}); its {len(running[0].tokens)} "
                "tokens need KV within kv_cache_memory_bytes, and beside it room for a step of "
                "max_num_batched_tokens; a lower max_model_len refuses such requests at once"
            ) from error
        self._withdraw(plan, running[-(len(running) // 2 if computing else 1) :])

    def _withdraw(self, plan: Plan, victims: list[Sequence]) -> None:
        self.planner.give_way(plan, reversed(victims))
        self._release(victims)

    def _advance(self, live: LiveRequest, token: int, logprob: TokenLogprob | None) -> Delta:
        try:
            live.draws.see(token)
            delta = live.push(token, logprob, self._model.eos_ids)
            if self._scores and (scores := self._scores.pop(live.seq.id, None)) is not None:
                delta = msgspec.structs.replace(delta, prompt_logprobs=scores.found)
        except ParamError as error:  # its schema's doing
            delta = _failed(live.seq.id, str(error), error.param)
        except Exception as error:  # of its text, and of no other request
            traceback.print_exc()
            delta = _failed(live.seq.id, f"the engine failed on this reply: {error}")
        if delta.finish_reason is not None:
            self._forget(live.seq.id)
        return delta

    def _fail(self, plan: Plan, message: str) -> list[Delta]:
        """A step that raised may be any of its members' doing: all of them end, no other."""
        failed = [row.seq.id for row in plan.rows]
        for request_id in failed:
            self._forget(request_id, keep=False)
        self.planner.commit(plan, {})
        return [_failed(request_id, message) for request_id in failed]

    def _forget(self, request_id: str, *, keep: bool = True) -> None:
        self._live.pop(request_id, None)
        self._scores.pop(request_id, None)
        self.planner.remove(request_id, keep=keep)
        self._move()
        self.kv.release(request_id)

    def _release(self, seqs: Iterable[Sequence]) -> None:
        for seq in seqs:
            self.kv.release(seq.id)

    def _move(self, plan: Plan | None = None) -> None:
        """Copy and forget stored KV as the planner's prefix cache says, and free what a plan takes
        from those it preempts. Where memory is short the longest unused of the cache goes, and at
        last all of it: then who was to start with a copy waits again."""
        moves = deque(self.planner.take_moves())
        while moves:
            try:
                self._make(moves[0])
                moves.popleft()
            except Exception as error:
                if not is_shortage(error):
                    raise
                kept = moves[0].sources if isinstance(moves[0], Reuse) else ()
                if not self._forget_some(SHARE if kept else 0.0, kept):
                    self._clear_cache()
                    break
        without = {move.owner for move in moves if isinstance(move, Reuse)}
        if plan is not None:
            self._release(plan.preempted)
            if without:
                self._withdraw(plan, [seq for seq in self.planner.running if seq.id in without])

    def _make(self, move: Move) -> None:
        size = self.planner.pool.block_size
        match move:
            case Keep(key, owner, number):
                if key in self.planner.pool.shelved:  # and not forgotten again for want of room
                    self.kv.shelve(key, owner, number * size, size)
            case Drop(key):
                self.kv.forget(key)
            case Reuse(owner, sources):
                self.kv.reserve(owner, len(self._live[owner].seq.tokens), 0)
                self.kv.fill(owner, sources, size)

    def _forget_some(self, share: float, kept: Container[str | bytes] = ()) -> bool:
        """At least one block of the cache, the longest unused; False where there is none."""
        pool = self.planner.pool
        lost = pool.forget(max(1, round(share * len(pool.shelved))), kept)
        for key in lost:
            self.kv.forget(key)
        return bool(lost)

    def _clear_cache(self) -> None:
        self.planner.reset_cache()
        self.kv.clear_shelf()


def _failed(request_id: str, message: str, param: str | None = None) -> Delta:
    return Delta(
        id=request_id, text="", token_ids=(), finish_reason="error", error=message, param=param
    )
