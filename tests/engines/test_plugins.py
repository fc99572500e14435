"""An engine that an installed package brings: one folder and one entry, and it is everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmserve.engines import registry
from llmserve.engines.base import EngineError
from support.plugins import install, llmserve, python
from support.shells import Shell

TOY = "support.toy_engine:ENTRY"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder of installed packages, one of which brings the toy engine."""
    install(tmp_path, "toy-engine", toy=TOY)
    return tmp_path


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, installed into the process that runs already."""
    monkeypatch.syspath_prepend(str(world))
    return world


SERVED = """
import json, sys
import llmserve
before = [name for name in sys.modules if "toy" in name]
with llmserve.serve(engine="toy", voice="loud") as session:
    chat = session.client().chat.completions.create(
        model=session.info.model_id, messages=[{"role": "user", "content": "polly"}]
    )
    session.pause()
    session.resume()
    print(json.dumps({
        "engine": session.info.engine,
        "over HTTP": chat.choices[0].message.content,
        "ended by": chat.choices[0].finish_reason,
        "in code": session.generate("cracker", max_tokens=3),
        "asleep": session.sleep(),
        "awake": [session.wake(), session.generate("hi")][1],
        "imported before": before,
    }))
"""


def test_a_folder_and_an_entry_make_an_engine_that_serves(world: Path) -> None:
    ran = python(world, "-c", SERVED)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert "the toy engine has no sleep of its own" in told.pop("asleep")
    assert told == {
        "engine": "toy",
        "over HTTP": "POLLY",
        "ended by": "stop",
        "in code": "CRA",
        "awake": "HI",
        "imported before": [],
    }
    assert ran.stderr == ""


def test_the_command_line_lists_it_and_its_options(world: Path) -> None:
    row = "| `toy` | no model: a parrot | `pause` | pip install toy-engine |"
    assert row in llmserve(world, "engines").stdout
    assert llmserve(world, "engines", "toy").stdout == "model=parrot\nvoice=plain  (plain | loud)\n"
    assert "auto, vllm, torch, simulator, toy" in llmserve(world, "serve", "--help").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "toyy"], "there is no engine 'toyy'; did you mean toy?"),
        (["--engine", "steam"], "there is no engine 'steam'; engines: vllm, torch, simulator, toy"),
        (["--engine", "toy", "--option", "voise=1"], "no option 'voise'; did you mean voice?"),
        (["--engine", "toy", "--option", "x=1"], "the toy engine has no option 'x'; its options: "),
    ],
)
def test_errors_know_it(world: Path, words: list[str], told: str) -> None:
    ran = llmserve(world, "serve", *words)
    assert ran.returncode == 1
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_magics_know_an_engine_installed_into_a_running_kernel(ip: Shell, here: Path) -> None:
    assert ip.completions("%llmserve start --engine to") == ["torch", "toy"]
    assert ip.completions("%llmserve start --engine toy vo") == ["voice="]
    assert ip.completions("%llmserve start --engine=toy voice=") == ["plain", "loud"]
    assert "toy" in ip.run("%llmserve start --engine steam").red_line
    assert "did you mean voice" in ip.run("%llmserve start --engine toy voise=1").red_line
    ran = ip.ok("%llmserve start --engine toy")
    assert "Starting the parrot" in ran.shown[0]["text/plain"]
    assert "pause" in ip.ok("%llmserve status").text
    ip.ok("%llmserve pause\n%llmserve resume\n%llmserve stop")


BROKEN = {
    "no.such.module:ENTRY": "does not load (ModuleNotFoundError: No module named 'no')",
    "support.toy_engine:NOTHING": "does not load (AttributeError: ",
    "support.toy_engine:load": "is no EngineEntry but a function",
    TOY: "names its engine 'toy', and its entry point another",
}


@pytest.mark.parametrize("points_to", BROKEN)
def test_a_broken_package_is_named_with_its_cause_and_takes_nothing_from_the_others(
    world: Path, points_to: str
) -> None:
    install(world, "broken-engine", parrot=points_to)
    told = "the engine 'parrot' of the package broken-engine 1.5 cannot be used: "
    listed = llmserve(world, "engines")
    assert listed.returncode == 0
    assert [row.split("`")[1] for row in listed.stdout.splitlines()[2:]] == [
        "vllm", "torch", "simulator", "toy",
    ]  # fmt: skip
    assert listed.stderr.count("UserWarning") == 1
    assert f"UserWarning: {told}{points_to} {BROKEN[points_to]}" in listed.stderr
    asked = llmserve(world, "serve", "--engine", "parrot")
    assert asked.returncode == 1
    assert f"llmserve: {told}{points_to} {BROKEN[points_to]}" in asked.stderr
    assert asked.stderr.count("\n") == 1
    served = python(
        world, "-W", "error", "-c",
        "import llmserve; print(llmserve.serve(engine='simulator').generate('hi', max_tokens=1))",
    )  # fmt: skip
    assert served.returncode == 0, served.stderr


def test_a_broken_package_breaks_no_completion(ip: Shell, here: Path) -> None:
    install(here, "broken-engine", parrot="no.such.module:ENTRY")
    assert "start" in ip.completions("%llmserve sta")
    assert ip.completions("%llmserve start --engine parrot max_num_s") == ["max_num_seqs="]
    assert "broken-engine 1.5" in ip.run("%llmserve start --engine parrot").red_line


def test_no_package_takes_the_name_of_one_of_ours(here: Path) -> None:
    install(here, "thief", torch=TOY, auto=TOY)
    ours = registry.BUILT_IN["torch"]
    assert registry.find("torch") is ours
    with pytest.warns(UserWarning, match=r"thief 1\.5") as told:
        listed = registry.entries()
    assert ours in listed
    assert len(told) == 2
    assert registry.names() == ("auto", "vllm", "torch", "simulator", "toy")


def test_an_engine_whose_own_imports_fail_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "support.toy_engine.engine", None)
    with pytest.raises(EngineError, match=r"toy engine does not import .*: pip install toy-engine"):
        registry.find("toy").loaded()
