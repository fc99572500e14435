"""`Why` in words, and as one bar per figure."""

from __future__ import annotations

import html
from typing import Any, Final, Literal

import msgspec

from llmserve.core.knobs import KnobValue
from llmserve.core.quantities import duration
from llmserve.observe.time_by_cause import Cause


class CausePart(msgspec.Struct, frozen=True):
    cause: Cause
    seconds: float
    share: float
    """Of the p95, 0 to 1."""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured before and after a knob's last change. Seconds, and tokens per second."""

    knob: str
    before: KnobValue
    after: KnobValue
    step: int | None
    ago_s: float
    ttft_p95: tuple[float | None, float | None]
    itl_p95: tuple[float | None, float | None]
    generated_per_s: tuple[float, float]


class UnderValue(msgspec.Struct, frozen=True, kw_only=True):
    """The waits of a window that a knob had one value for."""

    value: KnobValue
    source: str | None
    """Who had set it: `slider`, `code`, `compare` …; None where no change to it is known."""
    n: int
    p95_s: float
    parts: tuple[CausePart, ...]
    binds: bool | None
    """Whether what the knob rules was much of it; None where too few came to say."""


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """One p95 by cause, the largest part first."""

    metric: Literal["TTFT", "ITL"]
    n: int
    p95_s: float
    parts: tuple[CausePart, ...]
    knob: str | None
    """The one that binds; None where it is the model's own work, or nothing stands out."""
    value: KnobValue = None
    """What it was while most of this was waited."""
    now: KnobValue = None
    """What it is."""
    under: tuple[UnderValue, ...] = ()
    """The same waits by its value at their time; that of the newest last."""
    effect: Effect | None = None
    """Of that knob's last change; None where there was none, or not enough came since."""


    @property
    def since(self) -> UnderValue | None:
        """Those under the value that it has now; None where none came since it has."""
        return next((each for each in self.under if each.value == self.now), None)

    @property
    def relieved(self) -> bool:
        """It bound, in this window; at the value that it has now it does not."""
        return self.since is not None and len(self.under) > 1 and self.since.binds is False


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """The p95 of TTFT and of ITL, each divided by cause (seconds). `str` says it in words."""

    t: float
    window_s: float
    ttft: Breakdown | None
    """None where no first token came in the window."""
    itl: Breakdown | None
    waiting: dict[Cause, int]
    """Requests without a first token now, by what each waits for."""

    def __str__(self) -> str:
        return "\n".join(sentences(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return to_html(self)


LABELS: Final[dict[Cause, str]] = {
    "cap": "waiting for a slot",
    "policy": "waiting while others go first by policy",
    "in_flight": "waiting for the token budget of all requests",
    "token_budget": "waiting for room in a step's token budget",
    "kv": "waiting for free KV blocks",
    "tenant_limit": "waiting for its tenant's limit",
    "batch": "waiting for a closed batch",
    "prefix": "waiting for a prompt part that another computes",
    "prefill": "computing its own prompt",
    "interference": "others' prompts in the same steps",
    "preemption": "preempted, and computing again",
    "decode": "decoding",
    "other": "step boundaries, delivery, client",
}
COLOURS: Final[dict[Cause, str]] = {
    "cap": "#d1495b", "policy": "#8a4fbf", "in_flight": "#e07b00", "token_budget": "#edae49",
    "kv": "#00798c", "tenant_limit": "#b5838d", "batch": "#a1754f", "prefix": "#5c9ead",
    "prefill": "#1f77b4",
    "interference": "#66a5d9", "preemption": "#e91e8c", "decode": "#2e9e44", "other": "#9e9e9e",
}
MOST_BARS = 3
"""Of the values that a knob had in the window, the newest are drawn."""
_LAB = ("compare", "sweep")
_ADVICE: Final[dict[str, str]] = {
    "max_num_seqs": "more at once shorten this wait, and lengthen each step and its gaps",
    "max_active": "more dispatched to the engine at once shorten this wait",
    "policy": "another policy would let others wait instead",
    "max_tokens_in_flight": "a larger budget admits more at once, and takes more KV",
    "max_num_batched_tokens": "a larger step takes prompts in sooner, a smaller one shortens gaps",
    "long_prefill_token_threshold": "smaller chunks shorten the gaps, and lengthen TTFT",
    "max_active_per_tenant": "a higher limit lets this tenant take slots from others",
    "kv_share_per_tenant": "a higher share lets this tenant take KV from others",
    "batching": "continuous batching lets requests join at every step",
}


def sentences(why: Why) -> list[str]:
    """What is slow, why, which knob binds and what its last change did. Never empty."""
    if why.ttft is None and why.itl is None:
        words = [f"No token came in the last {why.window_s:g} s, so there is nothing to explain."]
    else:
        words = [line for b in (why.ttft, why.itl) if b is not None for line in _described(b)]
    if why.waiting:
        kinds = ", ".join(f"{n} {LABELS[cause]}" for cause, n in why.waiting.items())
        words.append(f"Without a first token now: {kinds}.")
    return words


def _described(b: Breakdown) -> list[str]:
    top = b.parts[0] if b.parts else None
    line = f"{b.metric} p95 is {duration(b.p95_s)}"
    if top is not None:
        line += f"; {top.share:.0%} of it ({duration(top.seconds)}) is {LABELS[top.cause]}"
    rest = [f"{LABELS[p.cause]} {p.share:.0%}" for p in b.parts[1:] if p.share >= 0.05]
    words = [line + (f", then {', '.join(rest)}." if rest else ".")]
    if b.knob is not None:
        words.append(_verdict(b, b.knob))
    if b.effect is not None:
        words.append(_effect(b.effect))
    return words


def _verdict(b: Breakdown, knob: str) -> str:
    """Which value binds: of the value that it has now only what was measured under it."""
    before = [each for each in b.under if each.value != b.now]
    if not before:
        return f"{knob} = {b.now} binds: {_advice(b.parts, knob)}."
    these = f"These {'waits' if b.metric == 'TTFT' else 'gaps'} were under {_values(knob, before)}"
    if b.since is None:
        return f"{these}; it is {b.now} now, and nothing has come since."
    if b.since.binds is None:
        many = "one has" if b.since.n == 1 else f"{b.since.n} have"
        return f"{these}; it is {b.now} now, and only {many} come since."
    if b.relieved:
        return f"{knob} = {_list(before)} bound until its last change; at {b.now} it does not."
    return f"{knob} = {b.now} binds: {_advice(b.since.parts, knob)}."


def _advice(parts: tuple[CausePart, ...], knob: str) -> str:
    preempted = bool(parts) and parts[0].cause == "preemption"
    return "fewer at once leave each its KV" if preempted else _ADVICE[knob]


def _values(knob: str, found: list[UnderValue]) -> str:
    """As `max_num_seqs = 2 and 16, set by compare`."""
    (source, *others) = {each.source for each in found}
    by = f", set by {source}" if source in _LAB and not others else ""
    return f"{knob} = {_list(found)}{by}"


def _list(found: list[UnderValue]) -> str:
    return " and ".join(str(each.value) for each in found)


def _effect(e: Effect) -> str:
    step = "" if e.step is None else f" at step {e.step}"
    parts = [f"TTFT p95 {_pair(e.ttft_p95)}", f"ITL p95 {_pair(e.itl_p95)}"]
    rates = e.generated_per_s
    parts.append(f"{rates[0]:,.0f} → {rates[1]:,.0f} tokens/s")
    ago = duration(round(e.ago_s) if e.ago_s >= 1 else e.ago_s)
    return f"Its last change, {e.before} → {e.after}{step}, {ago} ago: {', '.join(parts)}."


def _pair(pair: tuple[float | None, float | None]) -> str:
    return " → ".join(duration(value) for value in pair)


def bars(why: Why) -> list[tuple[str, str, float, tuple[CausePart, ...]]]:
    """Figure, which value of the binding knob it is of (empty: there was one only), p95, parts."""
    found: list[tuple[str, str, float, tuple[CausePart, ...]]] = []
    for b in (why.ttft, why.itl):
        if b is None:
            continue
        alone = len(b.under) < 2 and (b.since is not None or b.knob is None)
        if alone:
            found.append((b.metric, "", b.p95_s, b.parts))
        for each in () if alone else b.under[-MOST_BARS:]:
            since = " now" if each.value == b.now else ""
            found.append((b.metric, f"{b.knob} = {each.value}{since}", each.p95_s, each.parts))
    return found


def to_html(why: Why) -> str:
    """The sentences under their bars, without a script: it shows in a stored notebook."""
    drawn = "".join(_bar(*bar) for bar in bars(why))
    words = "".join(f"<div>{html.escape(line)}</div>" for line in sentences(why))
    return f'<div style="max-width:760px">{drawn}{words}</div>'


def _bar(metric: str, value: str, p95_s: float, parts: tuple[CausePart, ...]) -> str:
    pieces = "".join(
        f'<span title="{LABELS[p.cause]}: {duration(p.seconds)}" style="display:inline-block;'
        f'height:14px;width:{100 * p.share:.2f}%;background:{COLOURS[p.cause]}"></span>'
        for p in parts
    )
    under = f'<span style="opacity:.75">{html.escape(value)}</span>' if value else ""
    return (
        '<div style="display:flex;align-items:center;gap:8px;margin:2px 0">'
        '<b style="min-width:150px;white-space:nowrap">'
        f'{metric} p95 {duration(p95_s)}</b><span style="flex:1">{under}'
        f'<span style="display:flex;border-radius:3px;overflow:hidden">{pieces}</span></span></div>'
    )
