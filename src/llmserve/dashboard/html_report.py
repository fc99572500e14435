"""A dashboard as one file: the page's own module with all that it was sent, and no network.

The page in the file is the live one; its kernel is a script that answers the first question with
the whole recording.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable

from llmserve.dashboard.page_messages import Message

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --jp-layout-color0: #111; --jp-layout-color1: #212121; --jp-layout-color2: #424242;
  --jp-ui-font-color1: #fff; --jp-ui-font-color2: rgba(255, 255, 255, 0.7);
  --jp-border-color1: #616161; --jp-border-color2: #424242; }} body {{ background: #111; }} }}
</style></head><body><div id="place"></div>
<script type="application/json" id="messages">{messages}</script>
<script type="text/plain" id="module">{module}</script>
<script type="module">
const text = (id) => document.getElementById(id).textContent;
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const messages = JSON.parse(text("messages"));
const blob = new Blob([bytes(text("module"))], {{ type: "text/javascript" }});
const {{ default: widget }} = await import(URL.createObjectURL(blob));
const listeners = new Set();
const model = {{
  send(request) {{
    if (request.kind !== "hello") return;
    for (const [content, buffers] of messages) {{
      const views = buffers.map((part) => new DataView(bytes(part).buffer));
      queueMicrotask(() => listeners.forEach((listener) => listener(content, views)));
    }}
  }},
  on: (_, listener) => listeners.add(listener),
  off: (_, listener) => listeners.delete(listener),
  widget_manager: {{ get_model: async () => {{ throw new Error("no controls in a report"); }} }},
}};
widget.render({{ model, el: document.getElementById("place") }});
</script></body></html>
"""


def to_html(title: str, messages: Iterable[Message], module: bytes) -> str:
    """Render the page. What comes from outside cannot end a script element."""
    recorded = [
        [content, [base64.b64encode(part).decode("ascii") for part in buffers]]
        for content, buffers in messages
    ]
    return _PAGE.format(
        title=html.escape(title),
        messages=json.dumps(recorded).replace("<", "\\u003c"),
        module=base64.b64encode(module).decode("ascii"),
    )
