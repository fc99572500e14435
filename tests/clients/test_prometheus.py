"""A Prometheus server that scrapes /metrics: what it has stored is what was served."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from clients.endpoint import KEY, PATIENCE_S, Endpoint, child
from clients.tools import MESSAGES

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: llmserve
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def prometheus(endpoint: Endpoint, tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Asks a server of its own, once it is there."""
    command = shutil.which("prometheus")
    assert command, "Debian: apt-get install prometheus; macOS: brew install prometheus"
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(key=KEY, target=endpoint.root.removeprefix("http://")))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    words = [command, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with child([*words, f"--web.listen-address={address}"]) as running:
        running.line_with("Server is ready to receive web requests")

        def ask(query: str) -> list[Any]:
            url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                found: list[Any] = json.load(answer)["data"]["result"]
                return found

        yield ask


def _once(ask: Callable[[], list[Any]], true: Callable[[list[Any]], bool]) -> list[Any]:
    until = time.monotonic() + PATIENCE_S
    while not true(found := ask()):
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def test_what_it_scrapes_is_what_was_served(
    endpoint: Endpoint, prometheus: Callable[[str], list[Any]]
) -> None:
    def scraped(query: str) -> float:
        (one,) = _once(lambda: prometheus(query), bool)
        return float(one["value"][1])

    _once(lambda: prometheus("up"), lambda found: bool(found) and found[0]["value"][1] == "1")
    tokens = "sum(llmserve_generation_tokens_total)"
    before = scraped(tokens)
    with openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as client:
        for _ in range(3):
            client.chat.completions.create(model=endpoint.model, messages=MESSAGES, max_tokens=8)
    _once(lambda: prometheus(tokens), lambda found: float(found[0]["value"][1]) == before + 24)
    quantile = "histogram_quantile(0.5, sum by (le) (llmserve_time_to_first_token_seconds_bucket))"
    assert scraped(quantile) > 0
