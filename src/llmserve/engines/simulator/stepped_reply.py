"""A request in the stepped simulator, and what a step of it has to deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llmserve.core.types import FinishReason, StepRecord
from llmserve.engines.batching import sequence
from llmserve.engines.batching.sequence import Plan
from llmserve.engines.simulator.reply import NOTHING, ends_after
from llmserve.engines.simulator.vocabulary import stand_in_voice, stand_ins, voice, words


@dataclass(eq=False, slots=True)
class SteppedReply:
    """A request in the engine."""

    seq: sequence.Sequence
    read: bool
    """Somebody may read its words, if only a cache that meets them in a prompt."""
    said: list[int] | None = None
    """The text of its form, where it has one."""
    voice: int | None = None
    drawn: int = 0
    """So many tokens of the reply are written into the sequence; the others are zeros."""
    stops_at: int | None = None
    """The reply ends with "stop" at so many tokens."""
    last_s: float | None = None
    """When it last had a token by itself, or as one of a group that is no more."""
    here: bool = True
    """The engine has it."""
    deaf: bool = False
    """Nothing more is delivered of it."""

    def foresee(self) -> None:
        """Find out where it ends with "stop", if it does."""
        seq, sampling = self.seq, self.seq.request.sampling
        if not (sampling.stop or sampling.stop_token_ids or self.said is not None):
            return
        most = seq.limit - seq.prompt_tokens
        if self.said is None:
            self.voice = voice(seq.request.prompt_ids, sampling.seed)
            tokens = words(self.voice, 0, most)
        else:
            tokens = (self.said or [NOTHING])[:most]
        self.stops_at = ends_after(sampling, self.said, tokens)
        if self.stops_at is not None:
            seq.limit = seq.prompt_tokens + self.stops_at

    def fill(self) -> None:
        seq = self.seq
        generated = seq.generated
        if generated > self.drawn and self.said is not None:
            seq.tokens[seq.prompt_tokens :] = self.said[:generated] or [NOTHING]
            self.drawn = generated
        elif generated > self.drawn:
            speak, draw = (voice, words) if self.read else (stand_in_voice, stand_ins)
            if self.voice is None:
                self.voice = speak(seq.request.prompt_ids, seq.request.sampling.seed)
            seq.tokens[seq.prompt_tokens + self.drawn :] = draw(self.voice, self.drawn, generated)
            self.drawn = generated

    @property
    def reason(self) -> FinishReason | None:
        """Why it is over; None while it is not."""
        if not self.seq.full:
            return None
        return "stop" if self.stops_at == self.seq.generated else "length"


@dataclass(eq=False, slots=True)
class SteppedTokens:
    """What a step that is over has to deliver."""

    when: float
    """The time at which clients have it."""
    plan: Plan
    tokens: list[tuple[SteppedReply, int, float | None, FinishReason | None]] = field(
        default_factory=list
    )
    """A reply, how much of its prompt was cached, the gap to the token before, and its end."""
    lasts: list[SteppedReply] = field(default_factory=list)
    """Of the group: they end with its token."""
    alone: list[SteppedReply] = field(default_factory=list)
    """They end without a token."""
    kv_used_blocks: int = 0
    record: StepRecord | None = None
    gap_s: float = 0.0
    """Of the group's tokens."""
    by_tenant: dict[str, int] = field(default_factory=dict)
    """The group, as far as somebody reads its tokens."""
    members: dict[str, str] = field(default_factory=dict)
    """The group's requests, each with its tenant; kept only where delivery is late."""

    def holds(self, reply: SteppedReply) -> bool:
        """Whether it has a token for this reply."""
        return reply.seq.id in self.members or any(one[0] is reply for one in self.tokens)

    def mute(self, request_id: str) -> None:
        """Nobody reads this request's tokens any more."""
        tenant = self.members.pop(request_id, None)
        if tenant is not None:
            self.by_tenant[tenant] -= 1
            if not self.by_tenant[tenant]:
                del self.by_tenant[tenant]


class StepListener(Protocol):
    """Who hears of tokens."""

    def token(
        self, request_id: str, cached_tokens: int, gap_s: float | None, end: FinishReason | None
    ) -> None:
        """A token of one request, so long after the one before."""
        ...

    def together(
        self, by_tenant: Mapping[str, int], times: list[float], gaps_s: list[float]
    ) -> None:
        """At each of these times so many requests of each tenant had a token, all of them so long
        after the one before."""
        ...

    def last(self, request_id: str, end: FinishReason) -> None:
        """One that `together` counted was the request's last; or it has none, for it was about its
        prompt alone."""
        ...

    def stepped(self, plan: Plan, steps: int, kv_used_blocks: int) -> None:
        """So many steps like this plan are over."""
        ...
