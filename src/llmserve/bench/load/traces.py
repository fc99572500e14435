"""Recorded loads: what others' servers saw, sent again to this one.

Traces hold lengths and times, never the texts; prompts are made anew to the same lengths.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmserve.bench.load.mooncake import MooncakeError, is_mooncake, read_mooncake
from llmserve.bench.load.workload import MOST_WARM_UP, WARM_UP_CLIENTS, Arrival, ChatTurn, Workload
from llmserve.core.bounds import BOUNDS
from llmserve.core.events import Submitted
from llmserve.core.validation import Bounds, real, shown, whole
from llmserve.engines.limits import MOST_TOKENS
from llmserve.engines.tokenizer import Tokenizer
from llmserve.observe.trace import TraceError, read_trace
from llmserve.serving.requests import Sender, read_param

_CHARS_PER_TOKEN = 4
"""Of ShareGPT's texts, where no tokenizer is at hand; its own readers use the same."""


class TraceFormatError(ValueError):
    """The file is of none of the kinds that can be read; the message says what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Arrivals as recorded; satisfies `Load`. Without times of its own a trace needs `rate`
    (Poisson) or `concurrency`."""

    source: str
    recorded: tuple[Arrival, ...]
    concurrency: int | None = None
    same_prompts: bool = False

    @property
    def clients(self) -> int | None:
        return self.concurrency

    @property
    def limit_s(self) -> float | None:
        return None

    @property
    def about(self) -> int | None:
        return len(self.recorded)

    @property
    def peak_rate(self) -> float | None:
        """Of the fullest second."""
        if self.concurrency is not None:
            return None
        return max(Counter(int(a.at_s) for a in self.recorded).values())

    def arrivals(self) -> Iterator[Arrival]:
        return iter(self.recorded)

    def with_seed(self, seed: int) -> Replay:
        """Other prompts at the same times: a trace has no luck but theirs."""
        salts = random.Random(f"{seed} prompts")
        return replace(
            self, recorded=tuple(replace(a, salt=salts.getrandbits(48)) for a in self.recorded)
        )

    def warm_up(self) -> Replay:
        few = tuple(replace(a, at_s=0.0, later=()) for a in self.recorded[:MOST_WARM_UP])
        salted = replace(self, recorded=few, concurrency=WARM_UP_CLIENTS, same_prompts=False)
        return salted.with_seed(-1)

    def __str__(self) -> str:
        tokens = sum(a.prompt_tokens for a in self.recorded)
        out = sum(a.max_tokens for a in self.recorded)
        how = "as recorded" if self.concurrency is None else f"{self.concurrency} at once"
        return (
            f"replay of {self.source}, {how}: {len(self.recorded)} requests, "
            f"{tokens:,} tokens in, {out:,} out"
        )


def read_load(
    path: str | Path,
    *,
    requests: int | None = None,
    speed: float = 1.0,
    rate: float | None = None,
    concurrency: int | None = None,
    longest: int | None = None,
    seed: int = 0,
    same_prompts: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Replay:
    """A trace of llmserve or Mooncake (JSON lines), a CSV of BurstGPT or Azure, or ShareGPT's JSON,
    known by its content.

    requests: only the first so many. speed: 2 sends them twice as fast. rate, concurrency: in
    place of the recorded times. longest: leave out requests of more tokens in and out together.
    tokenizer: counts the tokens of ShareGPT's texts, four letters each where there is none.
    """
    if rate is not None and concurrency is not None:
        raise ValueError("give rate (open loop) or concurrency (closed loop), not both")
    counts = {"requests": requests, "concurrency": concurrency, "longest": longest}
    requests, concurrency, longest = (
        Bounds(name, 1, math.inf, optional=True).read(count) for name, count in counts.items()
    )
    speed = real("speed", speed, 0, above=True)
    path = Path(path)
    try:
        found, timed = _read(path, tokenizer)
        kept = (a for a in found if longest is None or _tokens(a) <= longest)
        arrivals = list(itertools.islice(kept, requests))
    except MooncakeError as error:
        raise TraceFormatError(str(error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceFormatError(f"{path.name} is no text of a trace: {error}") from None
    if not arrivals:
        raise TraceFormatError(f"{path.name} holds no request to replay")
    if rate is not None:
        times = Workload(rate=rate, requests=len(arrivals), seed=seed).arrivals()
        starts = [a.at_s for a in times]
    elif concurrency is not None:
        starts = [0.0] * len(arrivals)
    elif timed:
        first = min(a.at_s for a in arrivals)
        starts = [(a.at_s - first) / speed for a in arrivals]
    else:
        raise ValueError(f"{path.name} has no times: give rate or concurrency")
    salts = random.Random(f"{seed} prompts")
    made = [
        replace(a, at_s=at_s, salt=salts.getrandbits(48))
        for a, at_s in zip(arrivals, starts, strict=True)
    ]
    made.sort(key=lambda a: a.at_s)
    return Replay(
        source=path.name, recorded=tuple(made), concurrency=concurrency, same_prompts=same_prompts
    )


def _tokens(arrival: Arrival) -> int:
    turns = sum(t.prompt_tokens + t.max_tokens for t in arrival.later)
    return arrival.prompt_tokens + arrival.max_tokens + turns


def _read(path: Path, tokenizer: Tokenizer | None) -> tuple[Iterable[Arrival], bool]:
    """Its requests, and whether they have times."""
    if path.suffix.lower() == ".csv":
        return _csv(path), True
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return _sharegpt(path, tokenizer), False
    if is_mooncake(path):
        return read_mooncake(path), True
    try:
        events = read_trace(path)
    except TraceError as error:
        raise TraceFormatError(
            f"{path.name} is no CSV of BurstGPT or Azure, none of Mooncake's, no ShareGPT JSON, "
            f"and no trace of llmserve: {error}"
        ) from None
    return (_submitted(e) for e in events if isinstance(e, Submitted)), True


def _submitted(event: Submitted) -> Arrival:
    try:
        # a prompt alone is replayed with a token: what it was for is not in a trace
        max_tokens = read_param("max_tokens", event.max_tokens or 1)
        sender = Sender(event.priority, event.tenant)
    except ValueError as error:
        raise TraceFormatError(f"request {shown(event.request_id)} of the trace: {error}") from None
    return Arrival(
        event.t, event.prompt_tokens, max_tokens, 0, sender.tenant, sender.priority
    )


_COLUMNS = {
    "at": ("timestamp",),
    "prompt": ("request tokens", "contexttokens", "input_tokens", "prompt_tokens", "num_prefill"),
    "reply": ("response tokens", "generatedtokens", "output_tokens", "completion_tokens"),
}


def _csv(path: Path) -> Iterator[Arrival]:
    """Requests without a reply (BurstGPT's failures) are left out: nothing is known of them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = {name.strip().lower(): name for name in rows.fieldnames or ()}
        column = {}
        for role, choices in _COLUMNS.items():
            known = [names[choice] for choice in choices if choice in names]
            if not known:
                raise TraceFormatError(
                    f"{path.name} has no column {' or '.join(choices)}; it has "
                    f"{', '.join(rows.fieldnames or ()) or 'none'}"
                )
            column[role] = known[0]
        for number, row in enumerate(rows, start=2):
            if lacking := [name for name in column.values() if row[name] is None]:
                raise TraceFormatError(f"{path.name}, line {number}: it has no {lacking[0]}")
            try:
                prompt = _tokens_of("prompt", row[column["prompt"]])
                reply = _tokens_of("reply", row[column["reply"]])
                at_s = _seconds(row[column["at"]])
            except (ValueError, TypeError, OverflowError) as error:
                raise TraceFormatError(f"{path.name}, line {number}: {error}") from None
            if prompt > 0 and reply > 0:
                yield Arrival(at_s, prompt, reply, 0)


def _tokens_of(name: str, text: str) -> int:
    """Below 1 where nothing is known of it."""
    most = MOST_TOKENS if name == "prompt" else int(BOUNDS["max_tokens"].high)
    return whole(f"tokens of a {name}", text, -most, most)


def _seconds(text: str) -> float:
    """BurstGPT counts seconds; Azure writes dates, with more digits than Python reads."""
    try:
        seconds = float(text)
    except ValueError:
        head, dot, fraction = text.strip().partition(".")
        digits = "".join(itertools.takewhile(str.isdigit, fraction))
        zone = fraction[len(digits) :]
        moment = datetime.fromisoformat(head + zone)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)  # or a change of summer time were a gap
        seconds = moment.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)
    if not math.isfinite(seconds):
        raise ValueError(f"{text.strip()} is no time")
    return seconds


def _sharegpt(path: Path, tokenizer: Tokenizer | None) -> Iterator[Arrival]:
    """Chats of human and gpt turns in pairs; a chat that begins otherwise is skipped to there."""
    try:
        chats = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{path.name} is no JSON: {error}") from None
    for chat in chats:
        if not isinstance(chat, Mapping) or not isinstance(chat.get("conversations"), list):
            raise TraceFormatError(f"{path.name} is no ShareGPT: no 'conversations' in its items")
        turns = list(_pairs(chat["conversations"], tokenizer))
        if turns:
            first, *later = turns
            yield Arrival(0.0, first.prompt_tokens, first.max_tokens, 0, later=tuple(later))


def _pairs(
    conversation: list[Mapping[str, Any]], tokenizer: Tokenizer | None
) -> Iterator[ChatTurn]:
    asked: str | None = None
    for message in conversation:
        if not isinstance(message, Mapping):
            continue
        who, text = message.get("from"), str(message.get("value") or "")
        if who in ("human", "user"):
            asked = text
        elif who in ("gpt", "assistant") and asked and text:
            yield ChatTurn(_count(asked, tokenizer), _count(text, tokenizer))
            asked = None


def _count(text: str, tokenizer: Tokenizer | None) -> int:
    if tokenizer is not None:
        return max(1, len(tokenizer.encode(text)))
    return max(1, len(text) // _CHARS_PER_TOKEN)
