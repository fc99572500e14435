"""`Race`: successive elimination of settings on identical arrivals. Pure: values in, verdicts out.

Round k of every setting met the same arrivals, so settings are compared within rounds, as shares
of the leader: what many arrivals do to one they do to all. The spread of those shares is estimated
over all settings that ran together: with two or three rounds a pair alone tells nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmserve.bench.results.intervals import Interval, interval, t_quantile

CONFIDENCE = 0.95
FEWEST_ROUNDS, MOST_ROUNDS = 2, 3
LEAST_GAIN = 0.01
"""What is nearer than this to the leader is no reason to go on."""
FIRST_LOOK, MOST_PAIRS = 3, 6
_FIRST, _LAST = 0.02, 0.03
"""Errors that each of two looks at the confirming pairs may make: 5 in 100 together."""


@dataclass(frozen=True, slots=True)
class Behind:
    """One setting was shown to be behind the leader; `by` is leader minus setting."""

    name: str
    leader: str
    by: Interval


@dataclass
class Race:
    """Settings by name, the values of each by round; who is out, and by how much."""

    names: Sequence[str]
    present: str
    """The setting in force before: on a tie it leads."""
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    out: dict[str, Behind] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)

    def add(self, name: str, number: int, value: float) -> None:
        self.values.setdefault(name, {})[number] = value

    def withdraw(self, name: str) -> None:
        """It cannot run, or breaks a limit."""
        self.withdrawn.add(name)

    @property
    def racing(self) -> list[str]:
        return [n for n in self.names if n not in self.out and n not in self.withdrawn]

    @property
    def leader(self) -> str:
        """Who has the highest mean over the rounds that all in the race have."""
        found = self._table(self.racing)
        if not found:
            return self.present
        means = {name: math.fsum(row) / len(row) for name, row in found.items()}
        best = max(means.values())
        tied = [name for name, mean in means.items() if math.isclose(mean, best, rel_tol=1e-9)]
        return self.present if self.present in tied else tied[0]

    def eliminate(self) -> list[Behind]:
        """Take out who is shown to be behind the leader; those, for this round."""
        differences = self.differences()
        leader = self.leader
        lost = [
            Behind(name, leader, by)
            for name, by in differences.items()
            if by.low is not None and by.low > 0
        ]
        self.out |= {each.name: each for each in lost}
        return lost

    def differences(self) -> dict[str, Interval]:
        """Leader minus each other in the race, with intervals that hold together over all settings
        and rounds; nothing before two rounds."""
        table = self._table(self.racing)
        rounds = min((len(row) for row in table.values()), default=0)
        if rounds < FEWEST_ROUNDS or len(table) < 2:
            return {}
        leader = self.leader
        scale = math.fsum(table[leader]) / rounds
        short = {
            name: [_short(a, b, scale) for a, b in zip(table[leader], row, strict=True)]
            for name, row in table.items()
            if name != leader
        }
        spread, freedom = _pooled(list(short.values()))
        looks = MOST_ROUNDS - FEWEST_ROUNDS + 1
        each = 1 - (1 - CONFIDENCE) / (looks * max(1, len(self.names) - 1))
        half = t_quantile(each, freedom) * spread / math.sqrt(rounds)
        size = scale or 1.0
        return {
            name: Interval(value=size * math.fsum(row) / rounds, half=size * half, n=rounds)
            for name, row in short.items()
        }

    @property
    def decided(self) -> bool:
        """No setting but the leader could still be shown to win by more than `LEAST_GAIN`."""
        differences = self.differences()
        if len(self.racing) > 1 and not differences:
            return False
        mean = math.fsum(row := self._table(self.racing).get(self.leader, [0.0])) / len(row)
        least = LEAST_GAIN * abs(mean)
        return all(by.low is not None and -by.low <= least for by in differences.values())

    def _table(self, names: Sequence[str]) -> dict[str, list[float]]:
        held = {name: self.values[name] for name in names if self.values.get(name)}
        if not held:
            return {}
        common = sorted(set.intersection(*(set(rounds) for rounds in held.values())))
        return {name: [rounds[k] for k in common] for name, rounds in held.items() if common}


def _short(leader: float, other: float, scale: float) -> float:
    """How far behind the leader, as a share of it; of its mean in a round where it has nothing."""
    return (leader - other) / (leader or scale or 1.0)


def _pooled(rows: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The spread of values around their rows' means, and its freedom."""
    squares = 0.0
    for row in rows:
        mean = math.fsum(row) / len(row)
        squares += math.fsum((value - mean) ** 2 for value in row)
    freedom = len(rows) * (len(rows[0]) - 1)
    spread = math.sqrt(squares / freedom)
    return (0.0 if spread <= 1e-12 else spread), freedom


def confirmed(pairs: Sequence[tuple[float, float]], *, last: bool = False) -> bool:
    """Whether the first of each pair is shown to be above the second. It is looked at twice: after
    the first three pairs, and at the last one there is time for."""
    looks = [pairs[:FIRST_LOOK]] if len(pairs) >= FIRST_LOOK else []
    looks += [pairs] if last and len(pairs) > FIRST_LOOK else []
    found = [margin(each) for each in looks]
    return any(each is not None and each.low is not None and each.low > 0 for each in found)


def margin(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """The gain over the present setting, relative to it: winner minus present, pair by pair."""
    base = math.fsum(present for _, present in pairs) / max(1, len(pairs))
    if not pairs or base <= 0:
        base = 1.0  # of a present setting that serves nothing: in the figure's own unit
    held = 1 - (_LAST if len(pairs) > FIRST_LOOK else _FIRST)
    return interval([(winner - present) / base for winner, present in pairs], held)
