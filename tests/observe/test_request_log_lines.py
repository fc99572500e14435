"""One line per request, structured, without its prompt unless that was asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.events import CacheLooked
from llmserve.observe.request_log_lines import LOGGER, LifecycleLog, LogOptions
from observe.tape import finished, one_request, refused, submitted


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_makes_one_json_line_when_it_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    log = LifecycleLog(LogOptions(str(file)), lambda id: "a secret")
    for event in (*one_request(), refused(7, "b", tenant="x"), submitted(8, "c")):
        log(event)
    log(finished(9, "c", reason="abort", tokens=0))
    log(CacheLooked(t=9, request_id="d", tenant="x", hit=True))
    log(CacheLooked(t=9, request_id="e", tenant="x", hit=False))
    log.close()
    log.close()
    served, full, left, cached = lines(file)
    assert served.pop("timestamp")
    assert served == {
        "name": LOGGER, "message": "request", "request_id": "a", "outcome": "stop",
        "tenant": "default", "priority": 0, "prompt_tokens": 10, "completion_tokens": 4,
        "max_tokens": 99, "queue_s": 1.0, "ttft_s": 3.0, "e2e_s": 6.0,
    }
    assert (full["outcome"], full["reason"], full["tenant"]) == ("refused", "queue_full", "x")
    assert (left["outcome"], left.get("ttft_s")) == ("abort", None)
    assert (cached["outcome"], cached["request_id"]) == ("cached", "d")
    assert "secret" not in file.read_text()


def test_the_prompt_is_written_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    log = LifecycleLog(LogOptions(str(file), prompts=True), lambda id: f"what {id} asked")
    for event in one_request():
        log(event)
    log.close()
    assert lines(file)[0]["prompt"] == "what a asked"


def test_without_a_file_the_lines_go_to_the_standard_logger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        log = LifecycleLog(LogOptions())
        for event in one_request():
            log(event)
        log.close()
    (record,) = caplog.records
    assert (record.name, record.request_id, record.e2e_s) == (LOGGER, "a", 6.0)  # type: ignore[attr-defined]  # the extra fields


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None), (False, None), (True, LogOptions()), ("f", LogOptions("f")),
        (Path("f"), LogOptions("f")), ({"to": "f", "prompts": True}, LogOptions("f", True)),
    ],
)
def test_the_option_takes_what_a_user_would_write(given: Any, read: LogOptions | None) -> None:
    assert LogOptions.read(given) == read


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"log_requests: .*promts"):
        LogOptions.read({"promts": True})
