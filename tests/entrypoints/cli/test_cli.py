"""The command line as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from llmserve import __version__
from llmserve.core.knobs import SPECS
from llmserve.entrypoints.cli.knobs_page import knobs_page
from support.kernels import SRC

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC)}
CLI = (sys.executable, "-m", "llmserve.entrypoints.cli.main")


def call(*words: str, key: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *words], capture_output=True, text=True,
        env=ENVIRONMENT | {"LLMSERVE_API_KEY": key}, check=False, timeout=60,
    )


@contextmanager
def serving(words: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A `llmserve serve` of the simulator, with its address and what stands for the key."""
    process = subprocess.Popen(
        [*CLI, "serve", "--engine", "simulator", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        url, key = (re.sub(r"^\w+\s+", "", line).strip() for line in lines[1:3])
        assert url.startswith("http"), (lines, process.poll())
        yield process, url, key
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_address_and_key_and_ends_in_order(ending: signal.Signals) -> None:
    with serving(["--port", "0", "--max-num-seqs", "7", "--option", "decode_ms=1"]) as served:
        process, url, key = served
        request = urllib.request.Request(
            url.removesuffix("/v1") + "/llmserve/knobs",
            headers={"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["knobs"]["max_num_seqs"]["value"] == 7
        status = call("status", url, key=key)
        assert status.returncode == 0
        assert "max_num_seqs" in status.stdout
        process.send_signal(ending)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Freed port" in rest
        assert "Traceback" not in errors
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(request, timeout=5)


def test_a_key_of_ones_own_is_not_printed() -> None:
    with serving(["--port", "0", "--api-key", "mine-alone"]) as (_, _, shown):
        assert shown == "yours"


def test_pages_of_the_origins_on_the_line_are_answered() -> None:
    listed = "http://a.example,http://b.example:8080"
    with serving(["--port", "0", "--cors-origins", listed]) as (_, url, _):
        for origin in listed.split(","):
            headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
            asked = urllib.request.Request(f"{url}/models", headers=headers, method="OPTIONS")
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == origin


def test_a_wrong_key_is_told_and_so_is_silence() -> None:
    with serving(["--port", "0"]) as (_, url, _):
        assert "401" in call("status", url, key="wrong").stderr
    gone = call("status", url)
    assert gone.returncode == 1
    assert "nothing answers" in gone.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "port"),
        (["--max-num-seqs", "1" * 5000], "max_num_seqs must be within 1 and 1,024 requests"),
        (["--option", "decode_ms"], "NAME=VALUE"),
        (["--option", "nothing=1"], "nothing"),
        (["--option", "decode_ms=1e400"], "decode_ms must be within 0 and"),
        (["--engine", "steam"], "steam"),
        (["--cors-origins", "https://a.example,b.example"], "write its scheme"),
    ],
)
def test_a_mistake_is_a_line_on_stderr(words: list[str], told: str) -> None:
    ran = call("serve", "--engine", "simulator", *words)
    assert ran.returncode == 1
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_knobs_prints_the_reference_and_help_names_every_knob() -> None:
    assert call("knobs").stdout == knobs_page()
    text = call("serve", "--help").stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in SPECS)
    assert call("--version").stdout.split() == ["llmserve", __version__]
