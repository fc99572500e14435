"""The reference page of all knobs, from their own metadata: `llmserve knobs > docs/knobs.md`."""

from __future__ import annotations

from typing import get_args

from llmserve.core.knobs import SPECS, Layer, Spec

_HEAD = """\
# Knobs

Everything that may change while requests flow. Each can be set in five places, all made from the
same definition, so none knows more than another:

- a slider, dropdown or toggle on the dashboard (`%llmserve dashboard`);
- `%llmserve set max_num_seqs=8 policy=priority` in a cell;
- `session.set(max_num_seqs=8)`, which returns what was changed, clamped, and at which engine step;
- `PATCH /llmserve/knobs` with a JSON object;
- as a first value: `llmserve.serve(max_num_seqs=8)`, `%llmserve start max_num_seqs=8`,
  `llmserve serve --max-num-seqs 8`.

A wrong name or value changes nothing and says why. A value above what the engine was started for
is clamped to its ceiling, and the answer says so. This page is written by `llmserve knobs`.
"""

_LAYERS = {
    "scheduler": "Scheduler: the order of dispatch",
    "admission": "Admission: who may wait, and how long",
    "engine": "Engine: what one step computes",
}


def knobs_page() -> str:
    parts = []
    for layer in get_args(Layer):
        parts.append(f"\n## {_LAYERS[layer]}\n\n| knob | default | may be | what it does |")
        parts.append("|---|---|---|---|")
        parts += [_row(spec) for spec in SPECS.values() if spec.layer == layer]
    return _HEAD + "\n".join(parts) + "\n"


def allowed(spec: Spec) -> str:
    """`fifo | priority`, `1 to 1,024 requests`, `1 to 4,096 requests, or none`."""
    if spec.choices:
        return " | ".join(spec.choices)
    if spec.type == "text":
        return spec.unit
    text = f"{spec.low:,} to {spec.high:,} {spec.unit}".rstrip()
    return f"{text}, or none" if spec.nullable else text


def _row(spec: Spec) -> str:
    shown = f"{spec.default:g}" if isinstance(spec.default, float) else str(spec.default)
    default = "none" if spec.default in (None, "") else f"`{shown}`"
    bounds = allowed(spec).replace("|", "\\|")
    none = f" None: {spec.nullable}." if spec.nullable else ""
    return f"| `{spec.name}` | {default} | {bounds} | {spec.help}{none} |"
