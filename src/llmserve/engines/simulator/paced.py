"""The simulator of a process of its own, without the process: messages in, one `Stepped` per step.

It reads no clock: `begin` and `finish` are told the time, and `begin` says when the step ends. What
comes in between those two takes effect at once, as it does in `SimulatorEngine`.
"""

from __future__ import annotations

from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, FinishReason, ParamError, Request, SamplingParams
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
from llmserve.engines.simulator.engine import MAX_LATE_S
from llmserve.engines.simulator.reply import SimulatedReply, shortest_reply
from llmserve.engines.simulator.setup import SimulatorSetup, StepTimes
from llmserve.engines.simulator.vocabulary import VOCABULARY, piece, words

PIECES = tuple(map(piece, range(256, VOCABULARY)))
AHEAD = 64
"""So many words of a reply are drawn in one go."""


class PacedReply(SimulatedReply):
    """A reply whose words are drawn ahead. A plain one needs no look at its parameters."""

    def __init__(self, seq: Sequence, said: list[int] | None) -> None:
        super().__init__(seq, said)
        self.plain = said is None and _is_plain(seq.request.sampling)
        self._ahead: list[int] = []
        self._first = 0

    def draw(self) -> int:
        if not self.plain:
            return super().draw()
        at = len(self.seq.tokens) - self.seq.prompt_tokens - self._first
        if at >= len(self._ahead):
            self._first += at
            at = 0
            self._ahead = words(self._voice, self._first, self._first + AHEAD)
        return self._ahead[at]

    def delta(self, token: int) -> Delta:
        """What the step added, its token committed."""
        if not self.plain:
            return _delta(self.seq.id, self.chunk(token))
        seq = self.seq
        count = len(seq.tokens)
        finish: FinishReason | None = "length" if count >= seq.limit else None
        if count - seq.prompt_tokens > 1:
            return Delta(seq.id, PIECES[token - 256], (token,), None, finish)
        return Delta(
            seq.id, PIECES[token - 256], (token,), None, finish, cached_tokens=seq.cached or 0
        )


class PacedSteps:
    def __init__(self, setup: SimulatorSetup, knobs: Knobs) -> None:
        self.planner = StepPlanner(
            kv_blocks=setup.kv_blocks,
            block_size=setup.block_size,
            max_model_len=setup.max_model_len,
            prefix_caching=setup.enable_prefix_caching,
        )
        self._times = StepTimes(setup)
        self._knobs = knobs
        self._replies: dict[str, PacedReply] = {}
        self._index = 0
        self._plan: Plan | None = None
        self._start = 0.0
        self._end: float | None = None
        """Of the step under way or just done, as long as there is work."""

    def handle(self, message: ToChild, now: float) -> FromChild | None:
        """Take a message in; what it must be answered with at once, if anything."""
        match message:
            case SubmitRequest():
                return self._submit(message, now)
            case Abort():
                self._forget(message.id)
                return None
            case Retune():
                self._knobs = message.knobs
                return Adopted(message.number, self._next)
            case ResetCache():
                self.planner.reset_cache()
                return Adopted(message.number, self._next)
            case Weigh():
                return Weighed(message.number, 0)

    def begin(self, now: float) -> float | None:
        """Plan the next step; when it ends. None where there is nothing to do.

        It begins where the last one ended, as long as there is work, so that lateness of the
        machine does not add up."""
        self.planner.take_moves()  # there is no KV to move
        plan = self._plan = self.planner.plan(self._knobs, now)
        if plan is None:
            self._end = None
            return None
        began = now if self._end is None else max(self._end, now - MAX_LATE_S)
        self._start = now
        self._end = began + self._times.step(plan.rows)
        return self._end

    def wake_at(self, now: float) -> float | None:
        """When there may be a step though no message comes."""
        return self.planner.wake_at(self._knobs, now)

    def finish(self, now: float) -> Stepped:
        """End the step under way: what it brought, and its record, whose end is `now`."""
        plan, replies = self._plan, self._replies
        assert plan is not None, "a step is under way"
        drawn = [
            (reply, reply.draw())
            for row in plan.rows
            if row.samples
            and (reply := replies.get(row.seq.id)) is not None
            and reply.seq is row.seq
        ]
        self.planner.commit(plan, {reply.seq.id: token for reply, token in drawn})
        deltas = [reply.delta(token) for reply, token in drawn]
        for row in plan.rows:
            if not row.samples and row.seq.full:
                alone = replies.get(row.seq.id)
                if alone is not None and alone.seq is row.seq:
                    deltas.append(_delta(row.seq.id, alone.prompt_alone()))
        for delta in deltas:
            if delta.finish_reason is not None:
                self._forget(delta.id)
        record = self.planner.record(plan, self._index, self._start, now - self._start)
        self._index += 1
        self._plan = None
        return Stepped(deltas, record)

    @property
    def _next(self) -> int:
        """The first step that is not planned yet."""
        return self._index + (self._plan is not None)

    def _submit(self, message: SubmitRequest, now: float) -> Stepped | None:
        sampling = message.sampling
        request = Request(
            id=message.id, prompt_ids=message.prompt_ids, sampling=sampling, arrival=0.0
        )
        try:
            said = shortest_reply(sampling.structured_outputs)
            seq = self.planner.add(request, now)
        except ValueError as error:
            param = error.param if isinstance(error, ParamError) else None
            failed = Delta(message.id, "", (), finish_reason="error", error=str(error), param=param)
            return Stepped([failed])
        self._replies[message.id] = PacedReply(seq, said)
        return None

    def _forget(self, request_id: str) -> None:
        if self._replies.pop(request_id, None) is not None:
            self.planner.remove(request_id)


def _is_plain(sampling: SamplingParams) -> bool:
    return not (
        sampling.stop
        or sampling.stop_token_ids
        or sampling.logprobs is not None
        or sampling.prompt_logprobs is not None
    )


def _delta(request_id: str, chunk: Chunk) -> Delta:
    return Delta(
        id=request_id,
        text=chunk.text,
        token_ids=chunk.token_ids,
        logprobs=chunk.logprobs,
        finish_reason=chunk.finish_reason,
        stop_reason=chunk.stop_reason,
        cached_tokens=chunk.cached_tokens,
        prompt_logprobs=chunk.prompt_logprobs,
    )
