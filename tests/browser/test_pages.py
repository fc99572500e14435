"""A page of another origin in a real browser, which calls the endpoint by fetch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

import llmserve
from dashboard.browser import CHROMIUM, FLAGS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

ASK = """async ([url, key, body]) => {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const answer = await fetch(`${url}/chat/completions`, {
    method: "POST", headers, body: JSON.stringify(body),
  });
  const told = { status: answer.status, text: "", pieces: 0 };
  told.cache = answer.headers.get("x-llmserve-cache");
  const decoder = new TextDecoder();
  for await (const piece of answer.body) {
    told.pieces += 1;
    told.text += decoder.decode(piece, { stream: true });
  }
  return told;
}"""
STOPPED = f"args => ({ASK})(args).catch(error => error.name)"
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "temperature": 0,
    "stream": True,
}  # fmt: skip


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """Another origin, with one page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page()
        browser.close()


def test_a_page_of_a_listed_origin_streams_and_one_of_another_is_stopped(page: Page) -> None:
    with (
        site() as listed,
        site() as other,
        llmserve.serve(
            engine="simulator", decode_ms=20.0, cors_origins=[listed], response_cache=True
        ) as session,
    ):
        page.goto(listed)
        told = page.evaluate(ASK, [session.url, session.api_key, BODY])
        assert told["status"] == 200
        assert told["text"].endswith("data: [DONE]\n\n")
        assert told["pieces"] > 1, "it came at once"
        assert told["cache"] == "miss"
        wrong = page.evaluate(ASK, [session.url, "sk-wrong", BODY])
        assert wrong["status"] == 401
        assert '"invalid_api_key"' in wrong["text"]
        page.goto(other)
        before = len(session.requests())
        stopped = page.evaluate(
            f"args => ({ASK})(args).catch(error => error.name)",
            [session.url, session.api_key, BODY],
        )
        assert stopped == "TypeError"
        assert len(session.requests()) == before


def test_without_the_option_no_page_gets_in(page: Page) -> None:
    with site() as other, llmserve.serve(engine="simulator") as session:
        page.goto(other)
        stopped = page.evaluate(
            f"args => ({ASK})(args).catch(error => error.name)",
            [session.url, session.api_key, BODY],
        )
    assert stopped == "TypeError"
