"""What the simulator says: words that follow from prompt and seed, or a form's shortest text."""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import Any

from llmserve.core.types import (
    Chunk,
    FinishReason,
    ParamError,
    PromptLogprobs,
    SamplingParams,
    Structured,
    TokenLogprob,
)
from llmserve.engines.batching.sequence import Sequence
from llmserve.engines.simulator.vocabulary import OPENING, piece, voice, word
from llmserve.engines.stop_strings import StopStrings

NOTHING = 0
"""The token of a reply that has no text."""


@lru_cache(16)
def shortest_reply(form: Structured | None) -> list[int] | None:
    """The tokens of the shortest text that fits, which are its bytes; None where any words do.
    ParamError where nothing fits, or nothing short."""
    if form is None:
        return None
    from llmserve.engines.guided.grammars import shortest, takes

    try:
        if form.kind == "grammar" and takes(form, "any words"):
            return None
        found = shortest(form)
    except ValueError as error:
        raise ParamError("structured_outputs", f"the form cannot be kept to: {error}") from None
    if found is None:
        said = "the form cannot be kept to: the simulator finds no short text that fits it"
        raise ParamError("structured_outputs", said)
    return found


class ReplyText:
    """The text of a reply's tokens, one after the other: words, or the bytes of a form's text."""

    def __init__(self, said: list[int] | None) -> None:
        self._said = said
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token >= OPENING:
            return piece(token)
        return self._bytes.decode(bytes((token,))) if self._said else ""


def ends_after(sampling: SamplingParams, said: list[int] | None, tokens: list[int]) -> int | None:
    """After how many of these first tokens of a reply it ends with "stop": at a stop, or where its
    form is complete. None where it goes on."""
    text, stops = ReplyText(said), StopStrings(sampling.stop)
    for count, token in enumerate(tokens, 1):
        if token in sampling.stop_token_ids or stops.push(text.push(token))[1] is not None:
            return count
        if said is not None and count >= len(said):
            return count
    return None


class SimulatedReply:
    """What one request is answered, token by token."""

    def __init__(self, seq: Sequence, said: list[int] | None = None) -> None:
        self.seq = seq
        self._said = said
        self._text = ReplyText(said)
        self._voice = voice(seq.request.prompt_ids, seq.request.sampling.seed)
        sampling = seq.request.sampling
        self._stops = StopStrings(sampling.stop, included=sampling.include_stop_str_in_output)

    def draw(self) -> int:
        if self._said is None:
            return word(self._voice, self.seq.generated)
        return self._said[self.seq.generated] if self._said else NOTHING

    def chunk(self, token: int) -> Chunk:
        """The chunk that the client gets for the token just committed."""
        sampling = self.seq.request.sampling
        stop_reason: str | int | None = None
        text = ""
        if token in sampling.stop_token_ids:
            stop_reason = token
        else:
            text, stop_reason = self._stops.push(self._text.push(token))
        finish: FinishReason | None = None
        if stop_reason is not None or self._over:
            finish = "stop"
        elif self.seq.full:
            finish = "length"
        if finish is not None:
            text += self._stops.rest()
        if token in sampling.stop_token_ids and sampling.include_stop_str_in_output:
            text += self._text.push(token)
        first = self.seq.generated == 1
        sure: Any = (TokenLogprob(token, 0.0, ((token, 0.0),) if sampling.logprobs else ()),)
        return Chunk(
            text=text,
            token_ids=(token,),
            logprobs=None if sampling.logprobs is None else sure,
            finish_reason=finish,
            stop_reason=stop_reason,
            cached_tokens=(self.seq.cached or 0) if first else 0,
            prompt_logprobs=self._prompt_logprobs() if first else None,
        )

    def prompt_alone(self) -> Chunk:
        """The only chunk of a request that is for its prompt alone."""
        asked = self.seq.request.sampling.logprobs is not None
        return Chunk(
            logprobs=() if asked else None,
            finish_reason="length",
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _prompt_logprobs(self) -> PromptLogprobs | None:
        """As certain as the reply."""
        top, ids = self.seq.request.sampling.prompt_logprobs, self.seq.request.prompt_ids
        if top is None:
            return None
        sure = (TokenLogprob(one, 0.0, ((one, 0.0),) if top else (), 1) for one in ids[1:])
        return (None, *sure)

    @property
    def _over(self) -> bool:
        return self._said is not None and self.seq.generated >= len(self._said)
