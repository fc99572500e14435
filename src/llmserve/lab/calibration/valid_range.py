"""What a calibration is valid for, and the refusal of what it does not model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llmserve.core.knobs import SPECS, Knobs
from llmserve.core.validation import meant, shown, whole
from llmserve.engines.base import EngineInfo
from llmserve.engines.limits import MOST_TOKENS

_MOST, _BLOCK = 1 << 40, 16


class CalibrationError(ValueError):
    """It cannot be calibrated, or not simulated so; `name` says which knob or number is at fault,
    where it is one."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class ValidRange(msgspec.Struct, frozen=True, kw_only=True):
    """The most that one of the measured steps did; a run that asks for more is extrapolated."""

    steps: int = 0
    """So many were measured."""
    decode_rows: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    kv_tokens: int = 0

    def check(self) -> None:
        for name in self.__struct_fields__:
            whole(name, getattr(self, name), 0, _MOST, exact=True)

    def __str__(self) -> str:
        return (
            f"steps of up to {self.decode_rows:,} decode rows and {self.prefill_tokens:,} prefill "
            f"tokens that read up to {self.kv_tokens:,} tokens of KV; {self.steps:,} were measured"
        )


class StartLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine was started with, as far as a simulation needs it."""

    kv_capacity_tokens: int
    block_size: int
    max_model_len: int
    max_num_seqs_ceiling: int
    max_num_batched_tokens_ceiling: int
    enable_prefix_caching: bool = True
    unsupported: dict[str, str] = {}
    """Knobs without effect on this engine, each with the reason."""

    @classmethod
    def of(cls, info: EngineInfo) -> StartLimits:
        ceilings = {
            name: int(info.ceilings.get(name) or SPECS[name].high or 1)
            for name in ("max_num_seqs", "max_num_batched_tokens")
        }
        return cls(
            kv_capacity_tokens=info.kv_capacity_tokens,
            block_size=info.block_size or _BLOCK,
            max_model_len=info.max_model_len,
            max_num_seqs_ceiling=ceilings["max_num_seqs"],
            max_num_batched_tokens_ceiling=ceilings["max_num_batched_tokens"],
            enable_prefix_caching=info.details.get("prefix caching", "True") == "True",
            unsupported=dict(info.unsupported),
        )

    @classmethod
    def untold(cls, kv_capacity_tokens: int) -> StartLimits:
        """Of an engine of which only its KV is known."""
        return cls(
            kv_capacity_tokens=kv_capacity_tokens,
            block_size=_BLOCK,
            max_model_len=kv_capacity_tokens,
            max_num_seqs_ceiling=int(SPECS["max_num_seqs"].high or 1),
            max_num_batched_tokens_ceiling=int(SPECS["max_num_batched_tokens"].high or 1),
        )

    def check(self) -> None:
        for name in ("block_size", "max_model_len", "kv_capacity_tokens"):
            whole(name, getattr(self, name), 1, MOST_TOKENS, "tokens", exact=True)
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            ends = int(SPECS[name].low or 1), int(SPECS[name].high or _MOST)
            whole(f"{name}_ceiling", getattr(self, f"{name}_ceiling"), *ends, exact=True)

    def options(self) -> dict[str, object]:
        """As the simulator takes them."""
        values = msgspec.structs.asdict(self)
        del values["unsupported"]
        return values


_DELIVERY = ("stream_interval_ms",)
"""Knobs of what is done with tokens that the engine has given."""


def check_knobs(
    asked: Mapping[str, object],
    measured: Mapping[str, object],
    valid: ValidRange,
    limits: StartLimits,
) -> None:
    """CalibrationError, with the name, for what is not modelled or leaves the measured range;
    KnobError for a value that no knob has."""
    for name in asked:
        if name not in SPECS:
            raise CalibrationError(
                f"{name} is not modelled: it is no knob, so what steps take under another {name} "
                f"is not known from this tape{meant(name, SPECS, listed=())}; serve with it and "
                "calibrate that session",
                name,
            )
        if name in _DELIVERY:
            raise CalibrationError(
                f"{name} is not modelled: predictions are of tokens as the engine gives them, not "
                "of how many leave in one event; leave it out",
                name,
            )
        if (why := limits.unsupported.get(name)) is not None:
            raise CalibrationError(f"{name} is not modelled: it has no effect here, {why}", name)
    before = Knobs().changed(measured)
    knobs = before.changed(asked)
    seen = {
        "max_num_seqs": valid.decode_rows,
        "max_num_batched_tokens": valid.decode_rows + valid.prefill_tokens,
    }
    for name, most in seen.items():
        value, ceiling = getattr(knobs, name), getattr(limits, f"{name}_ceiling")
        if name not in asked:
            continue
        if value > ceiling:
            raise CalibrationError(
                f"{name}={shown(value)} is above what the server was started for ({ceiling:,}); "
                "serve with a higher ceiling and calibrate that session",
                name,
            )
        if value > max(most, getattr(before, name)):
            raise CalibrationError(
                f"{name}={shown(value)} leaves the range that was measured: {valid}; "
                f"calibrate with {name}={value} to measure it",
                name,
            )
