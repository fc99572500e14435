"""What arrives when. Pure and seeded: the same workload gives the same arrivals.

Times, kinds, lengths and prompts are drawn from separate streams, so that another rate meets the
same requests.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Protocol

from llmserve.bench.load.arrivals import CHANGING, PROCESSES, Process, Shape
from llmserve.bench.load.request_kinds import KIND, Kind, Length, Mix, draw, parse_mix
from llmserve.core.validation import Bounds, one_of

DEFAULT_CONCURRENCY = 8
DEFAULT_DURATION_S = 10.0
DEFAULT_ROUNDS = 4
"""Requests per client of a closed loop that names neither requests nor duration."""
WARM_UP_CLIENTS, MOST_WARM_UP = 4, 16
MOST_REPEATED = 1000
"""A repeat is of one of the newest so many prompts, as many as a response cache holds."""
WORKLOAD = (
    *(
        Bounds(name, 0, math.inf, kind="real", above=True, optional=True)
        for name in ("rate", "rate_to", "duration_s", "period_s")
    ),
    Bounds("burstiness", 0, math.inf, kind="real", above=True),
    *(Bounds(name, 1, math.inf, optional=True) for name in ("concurrency", "requests")),
    Bounds("seed", -math.inf, math.inf),
    Bounds("repeat_share", 0, 1, kind="real"),
)
"""Numbers of a load as a whole; what one request is like, its kind checks."""
FIELDS: Mapping[str, Callable[[Any], Any]] = KIND | {each.name: each.read for each in WORKLOAD}
"""Readers of what a Workload says, one by one; whether they fit each other, it says itself."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A later turn of a chat: so many new tokens behind all that was said."""

    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come. `salt` makes its prompt unlike any other of the run."""

    at_s: float
    """Seconds after the start; 0 in a closed loop, where a free client decides."""
    prompt_tokens: int
    max_tokens: int
    salt: int
    tenant: str = "default"
    priority: int = 0
    ttft_slo_ms: float | None = None
    prefix_tokens: int = 0
    prefix_salt: int = 0
    """The prompt's first tokens are those of all arrivals with this salt."""
    later: tuple[ChatTurn, ...] = ()
    think_s: float = 0.0
    repeat: bool = False
    """It is an earlier arrival once more: prompt, lengths and sender."""

    def turn(self, number: int) -> Arrival:
        """The chat's later turn as an arrival of its own (1 is the first of `later`)."""
        turn = self.later[number - 1]
        return replace(
            self, prompt_tokens=turn.prompt_tokens, max_tokens=turn.max_tokens,
            salt=self.salt + number, prefix_tokens=0, later=(),
        )  # fmt: skip


class Load(Protocol):
    """What a bench sends: a Workload, or a Replay of what was recorded."""

    @property
    def clients(self) -> int | None:
        """Clients of the closed loop; None for an open one."""
        ...

    @property
    def limit_s(self) -> float | None:
        """No request arrives at or after this many seconds."""
        ...

    @property
    def about(self) -> int | None:
        """How many requests to expect, for a progress bar; None where only time decides."""
        ...

    @property
    def peak_rate(self) -> float | None:
        """The most requests per second to expect of an open loop; None of a closed one."""
        ...

    @property
    def same_prompts(self) -> bool:
        """Whether every run sends the very prompts of the run before."""
        ...

    def arrivals(self) -> Iterator[Arrival]: ...

    def with_seed(self, seed: int) -> Load:
        """The same sort of load with other luck, where luck has a part in it."""
        ...

    def warm_up(self) -> Load:
        """A few requests of the same sorts, at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An open loop at `rate` requests/s, or a closed loop of `concurrency` clients; not both.

    It ends after `duration_s` or `requests`, whichever comes first; a chat is one of `requests`.
    Without either an open loop lasts 10 s and a closed loop makes 4 requests a client. With a
    `mix` the kinds in it say what requests are like, in place of the fields that say it here.
    Raises ValueError on nonsense.
    """

    rate: float | None = None
    concurrency: int | None = None
    process: Process = "poisson"
    rate_to: float | None = None
    """Where ramp, step and sine go; see `Shape`."""
    burstiness: float = 0.25
    period_s: float | None = None
    """How long a ramp, a step or a day takes; the whole duration unless given."""
    duration_s: float | None = None
    requests: int | None = None
    prompt_tokens: Length = 128
    max_tokens: Length = 64
    tenant: str = "default"
    priority: int = 0
    ttft_slo_ms: float | None = None
    prefix_tokens: int = 0
    prefix_groups: int = 1
    turns: Length = 1
    think_s: float = 0.0
    mix: Mix | None = None
    seed: int = 0
    repeat_share: float = 0.0
    """So many of the requests (0.3 is 30 %) are an earlier one of the run once more."""
    same_prompts: bool = False
    """Send the very prompts of an earlier run, whose cache may then help. Otherwise prompts are
    salted anew in every run."""

    def __post_init__(self) -> None:
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("give rate (open loop) or concurrency (closed loop), not both")
        for bounds in WORKLOAD:
            object.__setattr__(self, bounds.name, bounds.read(getattr(self, bounds.name)))
        one_of("process", self.process, PROCESSES)
        if self.rate is None and (self.process != "poisson" or self.rate_to is not None):
            raise ValueError("process and rate_to are of an open loop: give rate")
        if (self.rate_to is None) == (self.process in CHANGING):
            raise ValueError(f"rate_to goes with {', '.join(CHANGING)}, and they need it")
        _ = self.kinds  # raises what is wrong with them

    @property
    def kinds(self) -> dict[str, Kind]:
        if self.mix is not None:
            return parse_mix(self.mix)
        one = Kind(
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            tenant=self.tenant,
            priority=self.priority,
            ttft_slo_ms=self.ttft_slo_ms,
            prefix_tokens=self.prefix_tokens,
            prefix_groups=self.prefix_groups,
            turns=self.turns,
            think_s=self.think_s,
        )
        return {"": one}

    @property
    def shape(self) -> Shape | None:
        """When they come; None in a closed loop."""
        if self.rate is None:
            return None
        over_s = self.period_s or self.duration_s or DEFAULT_DURATION_S
        return Shape(self.process, self.rate, self.rate_to or self.rate, over_s, self.burstiness)

    @property
    def clients(self) -> int | None:
        return None if self.rate is not None else self.concurrency or DEFAULT_CONCURRENCY

    @property
    def limit_s(self) -> float | None:
        open_ended = self.rate is not None and self.requests is None
        return DEFAULT_DURATION_S if self.duration_s is None and open_ended else self.duration_s

    @property
    def peak_rate(self) -> float | None:
        return None if self.rate is None else max(self.rate, self.rate_to or 0.0)

    @property
    def limit(self) -> int | None:
        """At most so many requests."""
        if self.requests is None and self.duration_s is None and self.clients is not None:
            return DEFAULT_ROUNDS * self.clients
        return self.requests

    @property
    def about(self) -> int | None:
        if self.limit is None and self.shape is not None and self.limit_s is not None:
            return max(1, round(self.shape.expected(self.limit_s)))
        return self.limit

    def with_seed(self, seed: int) -> Workload:
        return replace(self, seed=seed)

    def warm_up(self) -> Workload:
        """As many as are at work together, up to 16, and no chat thinks about its next turn."""
        clients = min(self.clients or WARM_UP_CLIENTS, self.limit or MOST_WARM_UP, MOST_WARM_UP)
        return replace(
            self, rate=None, rate_to=None, process="poisson", concurrency=clients,
            requests=clients, duration_s=None, turns=1, seed=self.seed - 1, same_prompts=False,
        )  # fmt: skip

    def arrivals(self) -> Iterator[Arrival]:
        """In order of time. A closed loop bounded by duration alone goes on for ever: stop it."""
        shape = self.shape
        times = random.Random(f"{self.seed} times")
        starts = itertools.repeat(0.0) if shape is None else shape.times(times)
        within = math.inf if shape is None or self.limit_s is None else self.limit_s
        times_s = takewhile(within.__gt__, itertools.islice(starts, self.limit))
        drawn = self._requests(times_s)
        return self._with_repeats(drawn) if self.repeat_share else drawn

    def _with_repeats(self, drawn: Iterator[Arrival]) -> Iterator[Arrival]:
        """Drawn from a stream of its own: the other requests are those of any other share."""
        chance = random.Random(f"{self.seed} repeats")
        recent: deque[Arrival] = deque(maxlen=MOST_REPEATED)
        for arrival in drawn:
            if recent and chance.random() < self.repeat_share:
                yield replace(chance.choice(recent), at_s=arrival.at_s, repeat=True)
            else:
                recent.append(arrival)
                yield arrival

    def _requests(self, times: Iterable[float]) -> Iterator[Arrival]:
        kinds = list(self.kinds.values())
        weights = [kind.weight for kind in kinds]
        which, lengths, salts = (
            random.Random(f"{self.seed} {name}") for name in ("kinds", "lengths", "prompts")
        )
        groups = random.Random(f"{self.seed} groups")
        heads = {id(kind): [groups.getrandbits(48) for _ in range(kind.prefix_groups)]
                 for kind in kinds}  # fmt: skip
        for at_s in times:
            kind = kinds[0] if len(kinds) == 1 else which.choices(kinds, weights)[0]
            first = ChatTurn(draw(kind.prompt_tokens, lengths), draw(kind.max_tokens, lengths))
            more = 0 if kind.turns == 1 else draw(kind.turns, lengths) - 1
            yield Arrival(
                at_s=at_s,
                prompt_tokens=first.prompt_tokens,
                max_tokens=first.max_tokens,
                salt=salts.getrandbits(48),
                tenant=kind.tenant,
                priority=kind.priority,
                ttft_slo_ms=kind.ttft_slo_ms,
                prefix_tokens=kind.prefix_tokens,
                prefix_salt=groups.choice(heads[id(kind)]) if kind.prefix_tokens else 0,
                later=tuple(
                    ChatTurn(draw(kind.prompt_tokens, lengths), draw(kind.max_tokens, lengths))
                    for _ in range(more)
                ),
                think_s=kind.think_s,
            )

    def __str__(self) -> str:
        if self.shape is not None:
            kind = f"open loop, {self.shape}"
        else:
            kind = f"closed loop, {self.clients} at once"
        ends = [f"{self.limit} requests"] * (self.limit is not None)
        ends += [] if self.limit_s is None else [f"{self.limit_s:g} s"]
        sizes = "; ".join(
            f"{name} {each.weight:g}: {each}" if name else str(each)
            for name, each in self.kinds.items()
        )
        again = f"{self.repeat_share:.0%} of them repeated, " if self.repeat_share else ""
        return f"{kind}, {' or '.join(ends)}, {sizes}, {again}seed {self.seed}"
