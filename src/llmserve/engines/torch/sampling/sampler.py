"""Draws one token for each row of a batch, every row by its own parameters and generator.

The order is vLLM's: penalties, logit_bias, min_tokens, the grammar, temperature, min_p, top_k,
top_p. A draw takes exactly
one number from the request's own generator and walks the row's distribution in an order that
depends on that row alone, so a seed gives the same tokens whatever else is in the batch.
Log-probabilities are those of the untouched logits, as in vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmserve.core.types import SamplingParams, TokenLogprob
from llmserve.engines.torch.model.transfer import fetch, upload
from llmserve.engines.torch.sampling.guided_decoding import Matcher, forbidden
from llmserve.engines.torch.sampling.penalties import TokenCounts, apply_tallies, forbid

FEW = 256
"""Candidates looked at first for top_p; where they do not hold its mass, all are sorted."""


class Draws:
    """One request's sampling state: generator, tokens as penalties see them, matcher."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        *,
        prompt: Iterable[int] = (),
        ends: Iterable[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        """`ends` are the model's end tokens, which min_tokens forbids at first."""
        self.params = params
        self.matcher = matcher
        self.greedy = params.temperature == 0
        self.generator = None if self.greedy else torch.Generator().manual_seed(seed)
        self._uniform: float | None = None
        self._drawn = 0
        tally = TokenCounts(params, prompt)
        self.tally = tally if tally.penalised or params.logit_bias else None
        # a grammar says itself when it ends
        self._min_tokens = 0 if matcher is not None else params.min_tokens
        self.ends = np.array(sorted({*ends, *params.stop_token_ids}), dtype=np.int64)
        self.plain = (
            self.greedy and self.tally is None and not self._min_tokens
            and params.logprobs is None and matcher is None
        )  # fmt: skip

    @property
    def must_go_on(self) -> bool:
        """Whether no end token may be drawn yet."""
        return self._drawn < self._min_tokens

    def see(self, token: int) -> None:
        """Take a drawn token as the reply's next."""
        self._drawn += 1
        self._uniform = None
        if self.matcher is not None:
            self.matcher.push(token)
        if self.tally is not None:
            self.tally.see(token)

    def uniform(self) -> float:
        """The number that draws the next token: the same until that is seen, so that a step which
        must be run again draws what it would have drawn."""
        if self._uniform is None:
            self._uniform = torch.rand((), generator=self.generator).item()
        return self._uniform


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn, where it was drawn: on a GPU nothing of it has been waited for."""

    tokens: Tensor
    asking: list[int]
    """Rows that want log-probabilities: of the drawn token, then the likeliest and their ids."""
    logprobs: tuple[Tensor, ...] = ()


def draw(logits: Tensor, rows: Sequence[Draws]) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of each row of `logits` (float32), and its log-probability where asked."""
    drawn = pick(logits, rows)
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    tokens, *asked = fetch(drawn.tokens, *drawn.logprobs)
    settled = [
        token if row.matcher is None else row.matcher.settle(token)
        for token, row in zip(tokens, rows, strict=True)
    ]
    if asked and settled != tokens:
        again = _logprobs(logits, upload(settled, logits.device), rows, drawn.asking)
        asked = [*fetch(*again)]
    tokens = settled
    if asked:
        for i, logprob, values, ids in zip(drawn.asking, *asked, strict=True):
            count = rows[i].params.logprobs or 0
            top = tuple(zip(ids[:count], values[:count], strict=True))
            logprobs[i] = TokenLogprob(tokens[i], logprob, top)
    return tokens, logprobs


def pick(logits: Tensor, rows: Sequence[Draws]) -> Drawn:
    """`draw`, without a wait for the device."""
    if all(row.plain for row in rows):
        return Drawn(logits.argmax(-1), [])
    device = logits.device
    shaped = _shape(logits, rows)
    tokens = shaped.argmax(-1)
    random = [i for i, row in enumerate(rows) if not row.greedy]
    cut = [i for i in random if rows[i].params.top_k > 0 or rows[i].params.top_p < 1]
    whole = [i for i in random if i not in set(cut)]
    if whole:
        drawn = _draw_whole(_warm(shaped, rows, whole), _uniforms(logits, rows, whole))
        tokens[upload(whole, device)] = drawn
    if cut:
        params = [rows[i].params for i in cut]
        warm = _warm(shaped, rows, cut)
        drawn = _draw_cut(warm, params, _uniforms(logits, rows, cut))
        tokens[upload(cut, device)] = drawn
    asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    return Drawn(tokens, asking, _logprobs(logits, tokens, rows, asking) if asking else ())


def _shape(logits: Tensor, rows: Sequence[Draws]) -> Tensor:
    """The logits as penalties, biases and grammars make them; the given ones stay as they are."""
    tallies = {i: row.tally for i, row in enumerate(rows) if row.tally is not None}
    ends = {i: row.ends for i, row in enumerate(rows) if row.must_go_on}
    matchers = {i: row.matcher for i, row in enumerate(rows) if row.matcher is not None}
    if not tallies and not ends and not matchers:
        return logits
    shaped = logits.clone()
    if tallies:
        apply_tallies(shaped, tallies)
    if ends:
        forbid(shaped, ends)
    if matchers:
        never = upload(forbidden([*matchers.values()], logits.shape[-1]), logits.device)
        constrained = upload([*matchers], logits.device)
        shaped[constrained] = shaped[constrained].masked_fill_(never, -math.inf)
    return shaped


def _warm(logits: Tensor, rows: Sequence[Draws], picked: list[int]) -> Tensor:
    """The picked rows, divided by their temperatures, their highest logit at 0."""
    device = logits.device
    temperatures = upload([rows[i].params.temperature for i in picked], device)
    picked_logits = logits if len(picked) == len(rows) else logits[upload(picked, device)]
    # The highest first, and a floor: a tiny temperature must not divide to infinity.
    picked_logits = picked_logits - picked_logits.amax(-1, keepdim=True)
    warm = picked_logits / temperatures.clamp_min(1e-5)[:, None]
    shares = [rows[i].params.min_p for i in picked]
    if any(shares):
        least = upload([math.log(p) if p else -math.inf for p in shares], device)
        warm.masked_fill_(warm < least[:, None], -math.inf)
    return warm


def _uniforms(logits: Tensor, rows: Sequence[Draws], picked: list[int]) -> Tensor:
    return upload([rows[i].uniform() for i in picked], logits.device)


def _draw_whole(warm: Tensor, uniforms: Tensor) -> Tensor:
    return _invert(torch.softmax(warm, -1), uniforms)


def _draw_cut(warm: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
    """Draw among the likeliest by top_k, and of these the least that hold a mass of top_p."""
    vocab_size, device = warm.shape[-1], warm.device
    top_k = upload([min(p.top_k or vocab_size, vocab_size) for p in params], device)
    top_p = upload([p.top_p for p in params], device)
    limited = [min(p.top_k, vocab_size) for p in params if p.top_k]
    looked = min(vocab_size, max([FEW, *limited]))
    if device.type != "cpu":
        looked = vocab_size  # to ask whether few are enough is to wait for the device
    while True:
        values, ids = warm.topk(looked, -1)
        by_rank = torch.arange(looked, device=device) < top_k[:, None]
        mass = values.exp()
        total = torch.where(
            top_k <= looked, (mass * by_rank).sum(-1), warm.logsumexp(-1).exp()
        )
        mass = mass / total[:, None]
        above = mass.cumsum(-1) - mass
        enough = (top_k <= looked) | (above[:, -1] >= top_p)
        if looked == vocab_size or bool(enough.all()):
            break
        looked = vocab_size
    kept = by_rank & (above < top_p[:, None])
    kept[:, 0] = True
    rank = _invert(mass * kept, uniforms)
    return ids.gather(-1, rank[:, None])[:, 0]


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The index at which each row's running sum passes its share of the total; never one of
    mass 0."""
    running = mass.cumsum(-1)
    index = torch.searchsorted(running, uniforms[:, None] * running[:, -1:], right=True)
    last = (running < running[:, -1:]).sum(-1, keepdim=True)  # first index at the full sum
    return torch.minimum(index, last)[:, 0]


def _logprobs(
    logits: Tensor, tokens: Tensor, rows: Sequence[Draws], asking: list[int]
) -> tuple[Tensor, ...]:
    asked = upload(asking, logits.device)
    logprobs = logits[asked].log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[asked][:, None])[:, 0]
    most = max(rows[i].params.logprobs or 0 for i in asking)
    return chosen, *logprobs.topk(min(most, logits.shape[-1]), -1)
