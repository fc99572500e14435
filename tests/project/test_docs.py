"""README.md and docs/*.md: what they name exists, and every block of Python runs as it stands."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

import llmserve
from llmserve.bench.load.workload import Workload
from llmserve.bench.results.result import Result
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import EventBus
from llmserve.core.knobs import SPECS, Applied, KnobBoard, Knobs
from llmserve.dashboard import DashboardView
from llmserve.engines import registry
from llmserve.engines.base import EngineInfo
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.engines.simulator.setup import SimulatorSetup
from llmserve.engines.torch.options import TorchOptions
from llmserve.engines.vllm.options import OURS
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.magics import parsers
from llmserve.entrypoints.session.serve import serve
from llmserve.entrypoints.session.session import Session
from llmserve.lab.comparison import Comparison
from llmserve.lab.remote import Remote
from llmserve.lab.sweep_result import Sweep
from llmserve.lab.tuning.max_rate import MaxRate
from llmserve.lab.tuning.result import TuneResult
from llmserve.observe import Telemetry
from llmserve.observe.attribution_report import Why
from llmserve.observe.stats import Snapshot
from llmserve.serving.api_keys import Keyring
from llmserve.serving.service import Service
from support.shells import Shell

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
ALL = "\n".join(PAGES.values())
each_page = pytest.mark.parametrize("page", PAGES)

SMALLER = {
    "--concurrency 8": "--concurrency 2 --requests 2 --rounds 1 --max-tokens 2",
    "concurrency=16": "concurrency=2, requests=2, max_tokens=2",
    "concurrency=32, requests=128": "concurrency=2, requests=2, max_tokens=2",
    "concurrency=[1, 4, 16]": "concurrency=[1, 2], requests=2, max_tokens=2",
    "rate=20, duration=30": "rate=20, requests=2",
    "prompt_tokens=200, max_tokens=200": "prompt_tokens=20, max_tokens=2",
    "calibrate(budget_s=20)": "calibrate(budget_s=3)",
    "validate(model, budget_s=40)": "validate(model, budget_s=4)",
    "http://127.0.0.1:8001/v1": "{session.url}",
}
"""Blocks are run with these loads in place of theirs: the words are tried, not the patience."""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def inline(page: str) -> list[str]:
    """Code within the text, whose backticks may hold a line's end."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


@pytest.fixture
def reader(ip: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:
    """Who pastes the blocks of a page into cells, where "auto" is the simulator."""
    monkeypatch.setattr(registry, "default", lambda: "simulator")
    monkeypatch.chdir(tmp_path)
    yield ip
    for value in list(ip.ip.user_ns.values()):
        if isinstance(value, Session):
            value.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_of_python_runs_in_a_cell(reader: Shell, page: str) -> None:
    names = reader.ip.user_ns
    if page != "README.md":  # which begins with nothing
        names["llmserve"], names["session"] = llmserve, serve(prefill_ms=1, decode_ms=1)
    results = []
    for block in blocks(page):
        for shown, tried in SMALLER.items():
            block = block.replace(shown, tried)
        if "session" in names:
            block = block.replace("{session.url}", names["session"].url)
        results.append(reader.ok(block).result)
    if page == "README.md":
        assert any(isinstance(result, DashboardView) for result in results)
        assert any("Figure" in type(result).__name__ for result in results)


def test_every_smaller_load_stands_in_for_one_that_is_there() -> None:
    assert [shown for shown in SMALLER if shown not in ALL] == []


@each_page
def test_every_link_leads_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else DOCS
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        assert (folder / path).exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", PAGES[Path(path).name if path else page], re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, target


@each_page
def test_every_file_and_target_that_is_named_is_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", PAGES[page], re.MULTILINE):
        assert re.search(rf"^(\S+ )*{target}( \S+)*:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m (bench\.\w+)", PAGES[page]):
        assert (ROOT / "tests" / f"{module.replace('.', '/')}.py").exists(), module
    files = {path.name for path in ROOT.glob("src/**/*.py")} | {"test_real_cache.py"}
    for name in inline(page):
        for path in re.findall(r"\b(?:tests|binder|notebooks|docs)/[\w/.-]+\w", name):
            assert (ROOT / path).exists(), path
        for path in re.findall(r"(?<![\w/])[\w/]+\.py$", name):
            assert Path(path).name in files or (ROOT / path).exists(), path


@each_page
def test_no_name_of_ours_is_stale(page: str) -> None:
    """Whatever looks like a name in the code of a page is a name in the code of the project."""
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "Makefile"]
    texts = [path.read_text() + f" {path.stem}" for path in sources if path != Path(__file__)]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    metrics = {f"llmserve_{word}{end}" for word in words for end in ("", "_total")}
    known = words | metrics | {"gpu_memory_utilization"}  # which is vLLM's
    looks = re.compile(r"\b(?:[a-z]+(?:_[a-z0-9]+)+|(?:[A-Z][a-z]+){2,}|LLMSERVE_[A-Z_]+)\b")
    named = {word for code in inline(page) for word in looks.findall(code)}
    assert named - known == set()


def test_every_subcommand_and_every_option_of_the_short_ones_is_on_the_page_of_magics() -> None:
    page = PAGES["magics.md"]
    for name, parser in parsers.build_parsers().items():
        assert re.search(rf"[`%\W]{name}\b", page), name
        if name not in ("bench", "sweep", "compare", "tune"):
            assert [o for o in parsers.options_of(parser) if o not in page] == [], name
    for name in (*parsers.START_OPTIONS, registry.AUTO, *registry.BUILT_IN):
        assert name in page, name


def test_every_start_option_of_our_engines_is_on_the_page_of_engines() -> None:
    own = {
        option
        for name, entry in registry.BUILT_IN.items()
        for option in (OURS if name == "vllm" else entry.known_options())
    }
    assert [name for name in sorted(own) if f"`{name}`" not in PAGES["engines.md"]] == []


def test_every_route_is_on_the_page_of_http() -> None:
    bus, clock = EventBus(), MonotonicClock()
    engine = SimulatorEngine(sink=lambda record: None, clock=clock)
    service = Service(engine, KnobBoard(Knobs()), bus, clock)
    app = build_app(service, Telemetry(bus, clock), Keyring(None, {}))
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if path.split("/{")[0] not in PAGES["http.md"]] == []


def test_everything_public_says_what_it_is_and_the_pages_name_it() -> None:
    for name in llmserve.__all__:
        assert inspect.getdoc(getattr(llmserve, name)), name
    for given in (
        Result, Sweep, Comparison, TuneResult, MaxRate, DashboardView, Snapshot, Why, Applied,
        EngineInfo,
    ):  # fmt: skip
        assert given.__dict__["__doc__"], given
    for cls in (Session, Remote):
        for name, member in inspect.getmembers(cls):
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                assert inspect.getdoc(member), name
    for name, member in inspect.getmembers(Session):
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert re.search(rf"\b{name}\b", ALL), name


def test_messages_that_the_page_of_trouble_explains_are_those_that_are_raised() -> None:
    said = "\n".join(
        node.value
        for path in ROOT.glob("src/llmserve/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    cells = re.findall(r"^\| (`.+?`) \|", PAGES["troubleshooting.md"], re.MULTILINE)
    rows = [row for cell in cells for row in re.findall(r"`([^`]+)`", cell)]
    assert len(rows) > 5
    for row in rows:
        for fragment in filter(None, map(str.strip, row.split("…"))):
            assert fragment in said, fragment


def test_a_default_in_brackets_behind_an_option_is_its_default() -> None:
    known: dict[str, set[object]] = {name: {spec.default} for name, spec in SPECS.items()}
    for made in (SimulatorSetup, TorchOptions, Workload):
        for name, parameter in inspect.signature(made).parameters.items():
            known.setdefault(name, set()).add(parameter.default)
    told = re.findall(r"`(\w+)`\s\(([\d,]+)\)", ALL)
    assert len(told) > 5
    for name, value in told:
        assert int(value.replace(",", "")) in known[name], name
