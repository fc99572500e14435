"""`Why` in words, and as one bar per figure."""

from __future__ import annotations

import html
from typing import Any, Final, Literal

import msgspec

from llmserve.core.knobs import KnobValue
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


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """One p95 by cause, the largest part first."""

    metric: Literal["TTFT", "ITL"]
    n: int
    p95_s: float
    parts: tuple[CausePart, ...]
    knob: str | None
    """The one that binds; None where it is the model's own work, or nothing stands out."""
    value: KnobValue = None
    relieved: bool = False
    """It bound until its last change, in this window; since then it does not."""
    effect: Effect | None = None
    """Of that knob's last change; None where there was none, or not enough came since."""


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
        words = [line for b in (why.ttft, why.itl) if b is not None for line in _told(b)]
    if why.waiting:
        kinds = ", ".join(f"{n} {LABELS[cause]}" for cause, n in why.waiting.items())
        words.append(f"Without a first token now: {kinds}.")
    return words


def _told(b: Breakdown) -> list[str]:
    top = b.parts[0] if b.parts else None
    line = f"{b.metric} p95 is {_ms(b.p95_s)} ms"
    if top is not None:
        line += f"; {top.share:.0%} of it ({_ms(top.seconds)} ms) is {LABELS[top.cause]}"
    rest = [f"{LABELS[p.cause]} {p.share:.0%}" for p in b.parts[1:] if p.share >= 0.05]
    words = [line + (f", then {', '.join(rest)}." if rest else ".")]
    if b.knob is not None:
        advice = _ADVICE[b.knob]
        if b.parts and b.parts[0].cause == "preemption":
            advice = "fewer at once leave each its KV"
        if b.relieved:
            words.append(f"{b.knob} bound until its last change; at {b.value} it does not.")
        else:
            words.append(f"{b.knob} = {b.value} binds: {advice}.")
    if b.effect is not None:
        words.append(_effect(b.effect))
    return words


def _effect(e: Effect) -> str:
    step = "" if e.step is None else f" at step {e.step}"
    parts = [f"TTFT p95 {_pair(e.ttft_p95)} ms", f"ITL p95 {_pair(e.itl_p95)} ms"]
    rates = e.generated_per_s
    parts.append(f"{rates[0]:,.0f} → {rates[1]:,.0f} tokens/s")
    return (
        f"Its last change, {e.before} → {e.after}{step}, {e.ago_s:.0f} s ago: {', '.join(parts)}."
    )


def _pair(pair: tuple[float | None, float | None]) -> str:
    return " → ".join("–" if value is None else _ms(value) for value in pair)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def to_html(why: Why) -> str:
    """The sentences under one bar per figure, without a script: it shows in a stored notebook."""
    bars = "".join(_bar(b) for b in (why.ttft, why.itl) if b is not None)
    words = "".join(f"<div>{html.escape(line)}</div>" for line in sentences(why))
    return f'<div style="max-width:760px">{bars}{words}</div>'


def _bar(b: Breakdown) -> str:
    pieces = "".join(
        f'<span title="{LABELS[p.cause]}: {_ms(p.seconds)} ms" style="display:inline-block;'
        f'height:14px;width:{100 * p.share:.2f}%;background:{COLOURS[p.cause]}"></span>'
        for p in b.parts
    )
    return (
        '<div style="display:flex;align-items:center;gap:8px;margin:2px 0">'
        '<b style="min-width:150px;white-space:nowrap">'
        f"{b.metric} p95 {_ms(b.p95_s)} ms</b>"
        f'<span style="flex:1;display:flex;border-radius:3px;overflow:hidden">{pieces}</span></div>'
    )
