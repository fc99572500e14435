"""The way in through Jupyter's own server, as on Binder and JupyterHub."""

from __future__ import annotations

import secrets
from pathlib import Path

import openai
import pytest

import llmserve
from browser.lab import server

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]


def test_the_proxy_url_serves_and_streams(tmp_path: Path) -> None:
    token = secrets.token_hex(16)
    with server(tmp_path, token) as jupyter, llmserve.serve(engine="simulator") as session:
        client = openai.OpenAI(
            base_url=jupyter + session.proxy_url,
            api_key=session.api_key,
            default_query={"token": token},  # Jupyter's; ours is in the header
        )
        with client:
            stream = client.chat.completions.create(
                model=session.info.model_id,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=20,
                stream=True,
                extra_headers={"Accept": "text/event-stream"},
            )
            text = "".join(event.choices[0].delta.content or "" for event in stream)
        assert text == session.generate("hello", max_tokens=20)
