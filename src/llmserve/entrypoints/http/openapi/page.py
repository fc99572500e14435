"""A page of the OpenAPI document: plain HTML, with no script and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24;background:#fff}
code,pre{font:13px/1.45 ui-monospace,monospace}
details{border:1px solid #d0d7de;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
.verb{display:inline-block;min-width:4rem;font-weight:600;color:#0550ae}
.about{float:right;opacity:.75}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;border-top:1px solid #d0d7de}
pre{overflow:auto}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.verb{color:#79c0ff}
details,td,th{border-color:#30363d}}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Even a mistake in this page could load, run and send nothing."""


def page(document: Mapping[str, Any]) -> str:
    """The document, to be read: one section for each route."""
    info = document["info"]
    routes = [
        _route(path, verb, operation)
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>. A key goes in '
        "<code>Authorization: Bearer KEY</code> or <code>x-api-key: KEY</code>.</p>"
        f"{''.join(routes)}</body></html>"
    )


def _route(path: str, verb: str, operation: Mapping[str, Any]) -> str:
    parts = []
    if parameters := operation.get("parameters"):
        parts.append(
            _table(
                "Parameters",
                {f"{one['name']} ({one['in']})": {**one["schema"], **_about(one)}
                 for one in parameters},
            )
        )  # fmt: skip
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        schema = content["schema"]
        if "example" in content:
            text = escape(msgspec.json.encode(content["example"]).decode())
            parts.append(f"<p>For example <code>{text}</code></p>")
        parts.append(_table("Body", schema["properties"], schema.get("required", ())))
    answers = {
        status: {"description": f"{answer['description']} {', '.join(answer['content'])}"}
        for status, answer in operation["responses"].items()
    }
    parts.append(_table("Answers", answers))
    head = f'<span class="verb">{escape(verb.upper())}</span> <code>{escape(path)}</code>'
    head += f' <span class="about">{escape(operation.get("summary", ""))}</span>'
    return f"<details><summary>{head}</summary>{''.join(parts)}</details>"


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], required: Any = ()) -> str:
    cells = []
    for name, schema in rows.items():
        star = " (required)" if name in required else ""
        kind = {key: value for key, value in schema.items() if key != "description"}
        cells.append(
            f"<tr><td><code>{escape(name)}</code>{star}</td>"
            f"<td>{escape(schema.get('description', ''))} {_kind(kind)}</td></tr>"
        )
    return f"<h3>{title}</h3><table>{''.join(cells)}</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    if not schema:
        return ""
    text = escape(msgspec.json.encode(schema).decode())
    if len(text) < 120:
        return f"<code>{text}</code>"
    return f"<details><summary>schema</summary><pre>{text}</pre></details>"


def _about(parameter: Mapping[str, Any]) -> dict[str, str]:
    about = parameter.get("description")
    return {"description": about} if about else {}
