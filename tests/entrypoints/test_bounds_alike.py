"""The same wrong value, by whatever face it comes, is answered by the same sentence; and nothing
of the session is lost by it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

import llmserve
from llmserve.core.bounds import BOUNDS
from llmserve.core.types import ParamError
from llmserve.core.validation import plain, shown
from llmserve.dashboard.playground import LIMITS, Playground
from llmserve.entrypoints.cli.main import main
from llmserve.entrypoints.session.session import Session
from support.shells import Shell, shell


@dataclass
class World:
    shell: Shell
    capture: pytest.CaptureFixture[str] | None = None

    @property
    def session(self) -> Session:
        found: Session = self.shell.ip.user_ns["session"]
        return found


@pytest.fixture(scope="module")
def started() -> Iterator[World]:
    with shell() as own:
        own.ok("%load_ext llmserve")
        own.ok("%llmserve start --engine simulator prefill_ms=1 decode_ms=1")
        yield World(own)


@pytest.fixture
def world(started: World, capsys: pytest.CaptureFixture[str]) -> World:
    return World(started.shell, capsys)


def refused(field: str, ask: Callable[[], object]) -> str:
    with pytest.raises(ParamError) as caught:
        ask()
    assert caught.value.param == field
    return str(caught.value)


def generate(world: World, field: str, value: Any) -> str:
    return refused(field, lambda: world.session.generate("hi", **{field: value}))


def agenerate(world: World, field: str, value: Any) -> str:
    return refused(field, lambda: asyncio.run(world.session.agenerate("hi", **{field: value})))


def stream(world: World, field: str, value: Any) -> str:
    return refused(field, lambda: list(world.session.stream("hi", **{field: value})))


def post(world: World, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    key = {"Authorization": f"Bearer {world.session.api_key}"}
    answer = httpx.post(f"{world.session.url}/{path}", json=body, headers=key | headers)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def http(path: str, prompt: dict[str, Any]) -> Callable[[World, str, Any], str]:
    def ask(world: World, field: str, value: Any) -> str:
        error = post(world, path, {**prompt, field: plain(value)})
        assert error["param"] == field
        kind = "invalid_value" if " must be " in error["message"] else "invalid_type"
        assert error["code"] == kind or field in ("tenant", "stop")  # of these one sentence says it
        return str(error["message"])

    return ask


def header(world: World, field: str, value: Any) -> str:
    name = f"X-{field.replace('_', '-')}"
    told = post(world, "completions", {"prompt": "hi"}, **{name: str(plain(value))})
    assert told["param"] == field
    return str(told["message"]).replace(f"the {name.lower()} header", field)


def magic(world: World, field: str, value: Any) -> str:
    option = field.replace("_", "-")
    line = world.shell.run(f"%%llmserve --{option}='{plain(value)}'\nhi").red_line
    return re.sub(r"\x1b\[[\d;]*m", "", line).removeprefix("llmserve: ")


def bench(world: World, field: str, value: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # its sentence is what is returned
        world.session.bench(requests=1, progress=False, **{field: value})
    return str(caught.value)


def command(world: World, field: str, value: Any) -> str:
    option = f"--{field.replace('_', '-')}={plain(value)}"
    assert main(["bench", "--engine", "simulator", "--requests", "1", option]) == 1
    assert world.capture is not None
    return world.capture.readouterr().err.strip().removeprefix("llmserve: ")


def playground(world: World, field: str, value: Any) -> str:
    page = Playground(world.session.service, world.session.runtime)
    page.hear({"act": "send", "text": "hi", "copies": 1, field: value})
    content, _ = page.news(None)
    page.close()
    assert content is not None
    ceiling = f"{int(LIMITS['max_tokens']):,}"  # a page's own is lower
    told = str(content["words"]).replace(ceiling, f"{int(BOUNDS[field].high):,}")
    return told.removeprefix("not started: ")


SENDER = ("priority", "tenant", "ttft_slo_ms")
SAMPLED = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "repetition_penalty")
OTHERS = (
    "min_p", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "logit_bias", "prompt_logprobs",
    "skip_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
ALL = ("max_tokens", *SENDER, *SAMPLED, *OTHERS)
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
FACES: dict[str, tuple[Callable[[World, str, Any], str], tuple[str, ...]]] = {
    "generate": (generate, ALL),
    "agenerate": (agenerate, ALL),
    "stream": (stream, ALL),
    "chat": (http("chat/completions", MESSAGES), ALL),
    "completion": (http("completions", {"prompt": "hi"}), ALL),
    "header": (header, ("priority", "ttft_slo_ms")),
    "magic": (magic, ("max_tokens", "priority", *SAMPLED)),
    "bench": (bench, ("max_tokens", *SENDER)),
    "command line": (command, ("max_tokens", "priority")),
    "playground": (playground, ("max_tokens",)),
}
"""Each with the fields that can be said there."""


def carries(face: str, value: Any) -> bool:
    """JSON has neither NaN nor infinity; null, and an option that is not there, say nothing."""
    if face in ("chat", "completion"):
        return value is not None and not (isinstance(value, float) and not math.isfinite(value))
    return value is not None or face not in ("header", "magic", "command line")


WHOLE, NUMBER = "takes a whole number", "takes a number"
NOT_WHOLE = (True, math.nan, math.inf, "x", None, [1], np.bool_(True), np.float64("nan"))
NOT_REAL = (True, math.nan, "x", None, [1], np.bool_(True), np.float64("nan"))
FAR = (2**70, -(2**70), np.int64(-(2**60)))
TENANT = "is 1 to 128 printable characters"
CASES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("max_tokens", WHOLE, NOT_WHOLE),
    ("max_tokens", "must be within 1 and 1,000,000 tokens", (0, -1, -(2**70), np.int64(-1))),
    ("priority", WHOLE, NOT_WHOLE),
    ("priority", "must be within -2,147,483,647 and 2,147,483,647", FAR),
    ("ttft_slo_ms", NUMBER, tuple(value for value in NOT_REAL if value is not None)),
    ("ttft_slo_ms", "must be within 1 and 3,600,000 ms", (0, 0.5, -1, math.inf, *FAR)),
    ("tenant", TENANT, (True, math.nan, -1, 2**70, None, "", "x" * 129, "a\nb", ["x"])),
    ("temperature", NUMBER, NOT_REAL),
    ("temperature", "must be within 0 and 100", (-1, math.inf, *FAR)),
    ("top_p", NUMBER, NOT_REAL),
    ("top_p", "must be above 0 and at most 1", (0, 1.5, -1, math.inf, *FAR)),
    ("top_k", WHOLE, NOT_WHOLE),
    ("top_k", "must be within 0 and 10,000,000", (-2, *FAR)),
    ("seed", WHOLE, tuple(value for value in NOT_WHOLE if value is not None)),
    ("seed", "must be within -9,223,372,036,854,775,808 and", (2**70, -(2**70))),
    ("presence_penalty", NUMBER, NOT_REAL),
    ("presence_penalty", "must be within -2 and 2", (2.5, -3, math.inf, *FAR)),
    ("repetition_penalty", "must be above 0 and at most 100", (0, -1, math.inf, *FAR)),
    ("min_p", NUMBER, NOT_REAL),
    ("min_tokens", WHOLE, NOT_WHOLE),
    ("ignore_eos", "is true or false", (1, "x", None, [True])),
    ("prompt_logprobs", WHOLE, tuple(value for value in NOT_WHOLE if value is not None)),
    ("prompt_logprobs", "must be within 0 and 20", (-1, 21, *FAR)),
    ("skip_special_tokens", "is true or false", (1, "x", None, [True])),
    ("include_stop_str_in_output", "is true or false", (0, "x", None)),
    ("stop", "takes at most 16 strings", (True, 3, None, [3], "", ["a"] * 17)),
    ("stop_token_ids", "takes a list of whole numbers", (True, 3, None, "x")),
    ("logit_bias", "takes token ids with a number each", (True, 3, None, [3])),
]
WRONG = [
    pytest.param(face, field, says, value, id=f"{face}-{field}-{shown(value)[:24]}")
    for field, says, values in CASES
    for value in values
    for face, (_, fields) in FACES.items()
    if field in fields and carries(face, value)
]


@pytest.mark.parametrize(("face", "field", "says", "value"), WRONG)
def test_a_wrong_value_is_told_in_the_same_words_by_every_face(
    world: World, face: str, field: str, says: str, value: Any
) -> None:
    ask, _ = FACES[face]
    told, _, given = ask(world, field, value).partition(", not ")
    name = "a tenant" if field == "tenant" else field
    assert told.startswith(f"{name} {says}")
    own = plain(value)
    assert given in ("", shown(own), shown(str(own)))
    assert world.session.stats().running + world.session.stats().waiting == 0
    assert world.session.generate("hi", max_tokens=2).outcome.usage.completion_tokens == 2


def test_what_does_not_fit_behind_the_prompt_is_told_in_the_same_words(world: World) -> None:
    asked = {"max_tokens": 2**70}
    told = [
        refused("prompt", lambda: world.session.generate("hi", **asked)),
        refused("prompt", lambda: list(world.session.stream("hi", **asked))),
        magic(world, "max_tokens", 2**70),
    ]
    for path, prompt in (("chat/completions", MESSAGES), ("completions", {"prompt": "hi"})):
        error = post(world, path, prompt | asked)
        assert (error["code"], error["param"]) == ("context_length_exceeded", next(iter(prompt)))
        told.append(error["message"])
    words = (
        r"This model's maximum context length is 8192 tokens, but the prompt has \d+ and "
        rf"max_tokens asks for {2**70} more\. "
        r"The prompt is too long for that: shorten it, or ask for less\."
    )
    assert all(re.fullmatch(words, one) for one in told), told


def test_numpys_and_pandas_numbers_are_a_requests_own(world: World) -> None:
    session, numbers = world.session, pd.Series([3, 4])
    options: dict[str, Any] = {
        "max_tokens": numbers[0], "temperature": np.float32(0.5), "seed": np.array(7),
        "stop_token_ids": np.array([1, 2]), "logit_bias": {np.int64(3): np.float64(0.5)},
        "priority": np.int8(4), "ttft_slo_ms": np.float64(900), "ignore_eos": np.bool_(True),
    }  # fmt: skip
    assert session.generate("hi", **options).outcome.usage.completion_tokens == 3
    assert session.requests().iloc[-1].priority == 4


def test_a_cell_may_count_in_numpy_everywhere() -> None:
    with llmserve.serve(engine="simulator", prefill_ms=1, decode_ms=1) as session:
        session.set(max_num_seqs=np.int64(8))
        options: dict[str, Any] = {"max_tokens": np.int64(3), "temperature": np.float32(0.5)}
        assert session.generate("hi", **options).outcome.usage.completion_tokens == 3
        load: dict[str, Any] = {"requests": np.int64(2), "max_tokens": (np.int64(1), np.int64(2))}
        swept = session.sweep(
            max_num_seqs=np.array([1, 2]), concurrency=range(1, 3), rounds=1, progress=False, **load
        )
        assert [tuple(point.values.values()) for point in swept.points] == [
            (1, 1), (1, 2), (2, 1), (2, 2),
        ]  # fmt: skip
        assert type(swept).from_json(swept.to_json()) == swept
        sides = ({"max_num_seqs": np.int64(1)}, {"max_num_seqs": np.int64(2)})
        found = session.compare(*sides, pairs=3, concurrency=2, progress=False, **load)
        assert type(found).from_json(found.to_json()) == found
