"""What `start`, `status` and `set` put on the page. The key is never in it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmserve.core.knobs import SPECS, Knobs
from llmserve.core.quantities import duration
from llmserve.engines.base import abilities
from llmserve.entrypoints.cli.knobs_page import allowed
from llmserve.entrypoints.magics.display import Bundle

if TYPE_CHECKING:
    from llmserve.engines.process.processes import Stale
    from llmserve.entrypoints.session.session import Session

_CELL = 'style="text-align:left;padding:1px 14px 1px 0"'


def server_card(session: Session, name: str, seconds: float | None = None) -> Bundle:
    """What runs and how to reach it; `name` is the variable that holds the session."""
    info = session.info
    ready = "" if seconds is None else f", ready in {duration(seconds)}"
    device = f"{info.device} {info.dtype}".strip()
    rows = {
        "model": info.model_id,
        "engine": f"{info.engine} on {device}{ready}",
        "url": session.url,
        "key": f"{name}.api_key (not shown here)",
        "capacity": f"{info.kv_capacity_tokens:,} tokens of KV, {info.max_model_len:,} a request",
        "in code": f"{name}.client(), {name}.generate(…), {name}.dashboard()",
    }
    return table(rows, title="llmserve is running")


def status_card(session: Session, name: str) -> Bundle:
    card = server_card(session, name)
    can = ", ".join(abilities(session.service.engine))
    details = {**session.info.details, "can": can, **_policy(session), **_state(session)}
    figures = str(session.stats())
    parts = [card, table({name: text for name, text in details.items() if text})]
    text = "\n".join([*(part["text/plain"] for part in parts), figures])
    body = "".join(part["text/html"] for part in parts)
    return {"text/plain": text, "text/html": f"{body}<pre>{html.escape(figures)}</pre>"}


def _state(session: Session) -> dict[str, str]:
    """Where the engine does not take requests just now: why, and the cure."""
    state = session.service.supervisor.state
    cure = {"asleep": "%llmserve wake", "failed": "%llmserve restart"}.get(state)
    if state == "up":
        return {}
    return {"state": state if cure is None else f"{state}; requests wait: {cure}"}


def stale_note(found: Sequence[Stale]) -> str:
    many = f"{len(found)} engine process{'es' * (len(found) != 1)} of kernels that are gone"
    listed = "; ".join(map(str, found))
    return f"{many}: {listed}. `%llmserve status --remove-stale` ends them."


def _policy(session: Session) -> dict[str, str]:
    """The user's own policy and its times, or why it was removed."""
    service = session.service
    if service.policy_error is not None:
        return {"policy": f"removed, fifo goes on: {service.policy_error}"}
    return {} if service.user_policy is None else {"policy": str(service.user_policy)}


def knob_table(knobs: Knobs, unsupported: Mapping[str, str]) -> Bundle:
    """Every knob with its value, what it may be, and why it has no effect here if it has none."""
    lines, rows = [], []
    for name, value in knobs.as_dict().items():
        spec = SPECS[name]
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        effect = f"no effect here: {unsupported[name]}" if name in unsupported else spec.help
        lines.append(f"{name:<30}{shown:<12}{allowed(spec):<34}{effect}")
        cells = (f"<b>{name}</b>", html.escape(shown), html.escape(allowed(spec)))
        rows.append(_row(*cells, html.escape(effect)))
    return {"text/plain": "\n".join(lines), "text/html": f"<table>{''.join(rows)}</table>"}


def table(rows: Mapping[str, str], title: str = "") -> Bundle:
    width = max(map(len, rows), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    body = "".join(_row(html.escape(k), html.escape(v)) for k, v in rows.items())
    head = f"<b>{html.escape(title)}</b>" if title else ""
    text = "\n".join([title, *lines] if title else lines)
    return {"text/plain": text, "text/html": f"{head}<table>{body}</table>"}


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in cells)}</tr>"
