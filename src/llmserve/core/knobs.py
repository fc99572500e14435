"""Knobs: everything that may change while requests flow, and nothing else.

One frozen dataclass. Bounds, unit, help and layer stand in each field's metadata, and sliders,
`%llmserve set`, `PATCH /llmserve/knobs`, the command line and docs/knobs.md are made from them.
A knob is read at the moment of decision (`knobs = board.current`), never kept.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llmserve.core.bounds import BOUNDS
from llmserve.core.quantities import duration
from llmserve.core.validation import meant, mistyped, one_of, plain, real, shown, span, whole

PolicyName = Literal["fifo", "priority", "fair_share", "shortest_first", "deadline", "custom"]
"""`custom` is the function last registered by `Session.policy`."""
LengthEstimate = Literal["learned", "max_tokens"]
AdmissionSlo = Literal["off", "refuse"]
QueueMode = Literal["queue", "reject"]
Batching = Literal["continuous", "static", "none"]
Layer = Literal["scheduler", "admission", "engine"]
KnobValue = str | int | float | None

LIGHTEST, HEAVIEST = 0.001, 1000.0
"""Weights of tenants lie between these."""
_SLO = BOUNDS["ttft_slo_ms"]


class KnobError(ValueError):
    """A knob's name or value is wrong; `name` says which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, str(self))


@dataclass(frozen=True, slots=True)
class Spec:
    """Metadata of one knob: what is known of it besides its value."""

    name: str
    type: Literal["int", "float", "choice", "text"]
    default: KnobValue
    help: str
    layer: Layer
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    nullable: str | None = None
    """What None means, where None is allowed."""
    read: Callable[[str], str] | None = None
    """Of a text: checks it and writes it in its one form; ValueError says what is wrong."""


def _knob(
    default: KnobValue,
    help: str,
    layer: Layer,
    *,
    unit: str = "",
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    nullable: str | None = None,
    whole: bool = True,
    read: Callable[[str], str] | None = None,
) -> Any:  # Any, as dataclasses.field itself is typed: the field's own annotation decides
    kind: Literal["int", "float", "choice", "text"] = "int" if whole else "float"
    kind = "choice" if choices else "text" if read else kind
    low, high = bounds or (None, None)
    spec = Spec("", kind, default, help, layer, unit, low, high, choices, nullable, read)
    return field(default=default, metadata={"spec": spec})


def weights_of(text: str) -> dict[str, float]:
    """`gold:3,free:1` as a mapping; ValueError where it is none."""
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, colon, number = (piece.strip() for piece in part.rpartition(":"))
        weight = _weight(number) if colon and tenant else math.nan
        if not LIGHTEST <= weight <= HEAVIEST:
            bounds = span(LIGHTEST, HEAVIEST)
            raise ValueError(f"{shown(part)} is no name:weight with a weight {bounds}")
        if tenant in weights:
            raise ValueError(f"{shown(tenant)} has two weights")
        weights[tenant] = weight
    return weights


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def weights_text(text: str) -> str:
    """Weights as text, always written alike: `gold:3,free:1`."""
    return ",".join(f"{tenant}:{weight:g}" for tenant, weight in weights_of(text).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """The live settings. `changed` is where values come in, and the only place that checks them."""

    policy: PolicyName = _knob(
        "fifo", "Dispatch by arrival, priority, tenants' service, length, deadline or yours.",
        "scheduler",
        choices=get_args(PolicyName),
    )
    priority_aging_s: float | None = _knob(
        30.0, "Seconds of waiting that are worth one priority level.", "scheduler",
        unit="s", bounds=(0.001, 3600), whole=False, nullable="strict priority, no aging",
    )
    shortest_aging_tps: float = _knob(
        50.0, "Tokens of a shorter request that a second of waiting is worth (shortest_first).",
        "scheduler", unit="tokens/s", bounds=(0, 100_000), whole=False,
    )
    ttft_slo_ms: float = _knob(
        1000.0, "TTFT objective of a request that names none (deadline).", "scheduler",
        unit="ms", bounds=(_SLO.low, _SLO.high), whole=False,
    )
    length_estimate: LengthEstimate = _knob(
        "learned", "Length that shortest_first reckons with: of like replies so far, or as asked.",
        "scheduler", choices=get_args(LengthEstimate),
    )
    tenant_weights: str = _knob(
        "", "Shares of tenants under fair_share; who is not named weighs 1.", "scheduler",
        unit="name:weight,…", read=weights_text,
    )
    max_active: int | None = _knob(
        None, "Most requests dispatched to the engine at once.", "scheduler",
        unit="requests", bounds=(1, 4096), nullable="max_num_seqs + 2",
    )
    max_active_per_tenant: int | None = _knob(
        None, "Most requests of one tenant in the engine at once.", "scheduler",
        unit="requests", bounds=(1, 4096), nullable="no limit of its own",
    )
    max_tokens_in_flight: int | None = _knob(
        None, "Most tokens (prompt + max_tokens) of all requests in the engine.", "scheduler",
        unit="tokens", bounds=(1, 10_000_000), nullable="no limit",
    )
    kv_share_per_tenant: float | None = _knob(
        None, "Largest part of the KV room that one tenant's requests may come to hold.",
        "scheduler", unit="of 1", bounds=(0.001, 1), whole=False, nullable="no limit of its own",
    )
    queue_max: int = _knob(
        1000, "Most requests waiting; one more is refused with 429.", "admission",
        unit="requests", bounds=(0, 100_000),
    )
    queue_mode: QueueMode = _knob(
        "queue", "Wait for a slot, or be rejected at once when there is none.", "admission",
        choices=get_args(QueueMode),
    )
    queue_timeout_s: float = _knob(
        120.0, "Longest wait for a slot, then 503.", "admission",
        unit="s", bounds=(0.01, 86_400), whole=False,
    )
    request_timeout_s: float = _knob(
        900.0, "Longest life of a request, wait included, then 504.", "admission",
        unit="s", bounds=(0.01, 86_400), whole=False,
    )
    rate_limit_rps: float | None = _knob(
        None, "Requests per second that one tenant may send; more is refused with 429.",
        "admission", unit="requests/s", bounds=(0.001, 100_000), whole=False, nullable="no limit",
    )
    rate_burst: int = _knob(
        10, "Requests that one tenant may send at once before rate_limit_rps counts.", "admission",
        unit="requests", bounds=(1, 100_000),
    )
    rate_limit_tps: float | None = _knob(
        None, "Tokens (prompt + max_tokens, unused ones given back) per second of one tenant.",
        "admission", unit="tokens/s", bounds=(0.1, 10_000_000), whole=False, nullable="no limit",
    )
    rate_burst_tokens: int = _knob(
        16_384, "Tokens that one tenant may ask for at once before rate_limit_tps counts.",
        "admission", unit="tokens", bounds=(1, 10_000_000),
    )
    admission_slo: AdmissionSlo = _knob(
        "off", "Reject on arrival what the queue ahead would make miss its TTFT objective.",
        "admission", choices=get_args(AdmissionSlo),
    )
    stream_interval_ms: float = _knob(
        50.0, "Longest that a streamed reply's text waits for more while many stream; 0: never.",
        "scheduler", unit="ms", bounds=(0, 10_000), whole=False,
    )
    batching: Batching = _knob(
        "continuous", "Join and leave at every step; or run closed batches; or one at a time.",
        "engine", choices=get_args(Batching),
    )
    batch_window_ms: float = _knob(
        0.0, "How long a static batch waits to fill before it starts.", "engine",
        unit="ms", bounds=(0, 10_000), whole=False,
    )
    max_num_seqs: int = _knob(
        32, "Most sequences in one engine step.", "engine", unit="requests", bounds=(1, 1024),
    )
    max_num_batched_tokens: int = _knob(
        2048, "Most tokens computed in one engine step, prefill and decode together.", "engine",
        unit="tokens", bounds=(1, 131_072),
    )
    long_prefill_token_threshold: int = _knob(
        0, "Longest prefill chunk of one request in a step; 0 for no limit of its own.", "engine",
        unit="tokens", bounds=(0, 131_072),
    )
    min_decode_slots: int = _knob(
        0, "Slots of max_num_seqs kept for decodes: no more than the rest prefill at once.",
        "engine", unit="requests", bounds=(0, 1024),
    )

    @property
    def active_cap(self) -> int:
        """`max_active`, or what it follows when it is None."""
        return self.max_num_seqs + 2 if self.max_active is None else self.max_active

    def changed(self, changes: Mapping[str, object]) -> Knobs:
        """A copy with `changes` made, as a user gave them, all of them or (KnobError) none."""
        values: dict[str, Any] = {name: coerce(name, value) for name, value in changes.items()}
        return dataclasses.replace(self, **values)

    def taking(self, names: Iterable[str], other: Knobs) -> Knobs:
        """A copy with these knobs as they are in `other`."""
        values: dict[str, Any] = {name: getattr(other, name) for name in names}
        return dataclasses.replace(self, **values)

    def as_dict(self) -> dict[str, KnobValue]:
        return dataclasses.asdict(self)


SPECS: dict[str, Spec] = {
    f.name: dataclasses.replace(f.metadata["spec"], name=f.name) for f in dataclasses.fields(Knobs)
}


def coerce(name: str, value: object) -> KnobValue:
    """The value as the knob's own type, from Python, JSON or text; KnobError where it is none."""
    spec = SPECS.get(name)
    if spec is None:
        hint = meant(name, SPECS, called="knobs:")
        raise KnobError(name, f"there is no knob {shown(name)}{hint}")
    value = plain(value)
    if isinstance(value, str) and value in spec.choices:  # first: a choice may be called "none"
        return str(value)
    if spec.read is not None:
        return _text(spec, spec.read, value)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "")):
        if spec.nullable is None:
            raise KnobError(name, f"{name} needs a value")
        return None
    if spec.type == "choice":
        return _choice(spec, value)
    return _number(spec, value)


def _text(spec: Spec, read: Callable[[str], str], value: object) -> str:
    if isinstance(value, Mapping):
        parts = {name: w if isinstance(w, str) else shown(w) for name, w in value.items()}
        value = ",".join(f"{name}:{weight}" for name, weight in parts.items())
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        return ""
    if not isinstance(value, str):
        raise KnobError(spec.name, str(mistyped(spec.name, f"text ({spec.unit})", value)))
    try:
        return read(value)
    except ValueError as error:
        raise KnobError(spec.name, f"{spec.name}: {error}") from None


def _choice(spec: Spec, value: object) -> str:
    try:
        return str(one_of(spec.name, value, spec.choices))
    except ValueError as error:
        raise KnobError(spec.name, str(error)) from None


def _number(spec: Spec, value: object) -> int | float:
    assert spec.low is not None  # every number has bounds
    assert spec.high is not None
    read = whole if spec.type == "int" else real
    try:
        return read(spec.name, value, spec.low, spec.high, spec.unit)
    except ValueError as error:
        none = f"; none: {spec.nullable}" if spec.nullable else ""
        raise KnobError(spec.name, f"{error}{none}") from None


@dataclass(frozen=True, slots=True)
class Clamp:
    """A value asked for that the engine could not take, and the one in force instead."""

    name: str
    asked: KnobValue
    got: KnobValue
    why: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What a change came to: the knobs in force, and when the engine took them up."""

    values: Knobs
    changed: dict[str, tuple[KnobValue, KnobValue]]
    """Name to (before, after), only what differs."""
    clamped: tuple[Clamp, ...] = ()
    adopted_step: int | None = None
    """The first engine step planned under the new values; None when the engine had no part."""
    evicted: tuple[str, ...] = ()
    """Requests preempted at once, where that was asked for; they go on later, with every token."""
    ms: float = 0.0

    def __str__(self) -> str:
        if not (self.changed or self.clamped or self.evicted):
            return "nothing changed"
        parts = [f"{k}: {old} → {new}" for k, (old, new) in self.changed.items()]
        parts += [f"{c.name}: asked {c.asked}, got {c.got} ({c.why})" for c in self.clamped]
        parts += [f"{len(self.evicted)} running preempted"] * bool(self.evicted)
        step = "" if self.adopted_step is None else f" at step {self.adopted_step}"
        return f"{'; '.join(parts)}{step} ({duration(self.ms / 1e3)})"

    def _repr_pretty_(self, page: Any, cycle: bool) -> None:
        """As a cell's last line."""
        page.text(str(self))


class KnobBoard:
    """The current knobs, and the watchers of their changes. Any thread may read or update."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self._knobs = knobs or Knobs()
        self._lock = threading.Lock()
        self._watchers: list[Callable[[Knobs, Knobs], None]] = []

    @property
    def current(self) -> Knobs:
        return self._knobs

    def update(self, names: Iterable[str], requested: Knobs) -> tuple[Knobs, Knobs]:
        """Take these knobs from `requested`; return all of them before and after."""
        with self._lock:
            before = self._knobs
            after = self._knobs = before.taking(names, requested)
            watchers = tuple(self._watchers)
        if after != before:
            for watcher in watchers:
                watcher(before, after)
        return before, after

    def watch(self, watcher: Callable[[Knobs, Knobs], None]) -> Callable[[], None]:
        """Call `watcher(before, after)` in the thread that updates; returns the way to stop."""
        with self._lock:
            self._watchers.append(watcher)

        def unwatch() -> None:
            with self._lock:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)

        return unwatch


def differences(before: Knobs, after: Knobs) -> dict[str, tuple[KnobValue, KnobValue]]:
    """Name to (before, after) of every knob that differs."""
    old, new = before.as_dict(), after.as_dict()
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}
