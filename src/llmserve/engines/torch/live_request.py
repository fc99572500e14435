"""One request in the engine's process: what it has drawn, and when its reply ends."""

from __future__ import annotations

from llmserve.core.types import FinishReason, TokenLogprob
from llmserve.engines.batching.sequence import Sequence
from llmserve.engines.process.messages import Delta
from llmserve.engines.stop_strings import StopStrings
from llmserve.engines.torch.sampling.sampler import Draws
from llmserve.engines.torch.text.detokenize import TextStream


class LiveRequest:
    """Turns drawn tokens into the deltas that the client gets."""

    def __init__(self, seq: Sequence, draws: Draws, stream: TextStream) -> None:
        self.seq = seq
        self.draws = draws
        self._stream = stream
        sampling = seq.request.sampling
        self._stops = StopStrings(sampling.stop, included=sampling.include_stop_str_in_output)

    @property
    def _complete(self) -> bool:
        """Whether the structured output is complete, and nothing may follow."""
        return self.draws.matcher is not None and self.draws.matcher.complete

    def push(self, token: int, logprob: TokenLogprob | None, eos_ids: frozenset[int]) -> Delta:
        """Return the step's delta; the token is already in the sequence. The text of a token that
        ends the reply is not sent, nor what a stop string would have come from, unless asked."""
        sampling = self.seq.request.sampling
        finish: FinishReason | None = None
        stop_reason: str | int | None = None
        text = ""
        ends = False
        if token in sampling.stop_token_ids:
            finish, stop_reason, ends = "stop", token, True
        elif token in eos_ids and (not sampling.ignore_eos or self._complete):
            finish, ends = "stop", True
        else:
            text = self._stream.push(token)
            if self.seq.generated > sampling.min_tokens:
                text, stop_reason = self._stops.push(text)
            if stop_reason is not None or self._complete:
                finish = "stop"
            elif self.seq.full:
                finish = "length"
        if finish is not None:
            text += self._stops.rest()
        if ends and sampling.include_stop_str_in_output:
            text += self._stream.push(token)
        return Delta(
            id=self.seq.id,
            text=text,
            token_ids=(token,),
            logprobs=None if logprob is None else (logprob,),
            finish_reason=finish,
            stop_reason=stop_reason,
            cached_tokens=(self.seq.cached or 0) if self.seq.generated == 1 else 0,
        )
