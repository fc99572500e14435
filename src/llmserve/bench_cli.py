"""`llmserve bench`, `sweep`, `compare`: measure a server of one's own making, or any OpenAI URL.

Exit status: 0 measured; 1 it could not be, or nothing was served; 3 measured, but the figures
come with a warning (the client was the limit, a contaminated cache, an interrupt).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from llmserve.bench.options import add_load, read_load_options

if TYPE_CHECKING:
    from llmserve.bench.client import Client
    from llmserve.bench.http import HttpTarget
    from llmserve.runtime import Runtime
    from llmserve.session import Session

_KEY = "LLMSERVE_API_KEY"
WARNED = 3


class Measured(Protocol):
    def to_json(self) -> str: ...
    def to_markdown(self) -> str: ...
    def warnings(self) -> list[str]: ...


def add_commands(commands: Any) -> None:
    """To argparse's subparsers of the command line."""
    bench = commands.add_parser("bench", help="put a load on a server and report the figures")
    bench.set_defaults(run=_bench)
    bench.add_argument("--url", help="of an OpenAI endpoint (…/v1); none: start a server here")
    bench.add_argument("--repeats", type=int, metavar="N", help="runs; 3 unless told")
    sweep = commands.add_parser("sweep", help="measure every combination of knobs and loads")
    sweep.set_defaults(run=_sweep)
    sweep.add_argument("axes", nargs="+", metavar="name=value,value,…")
    sweep.add_argument("--rounds", type=int, metavar="N", help="runs of each point; 3 unless told")
    sweep.add_argument("--path", metavar="FILE", help="keep each run, and go on from there")
    compare = commands.add_parser("compare", help="two settings, or two servers, with a verdict")
    compare.set_defaults(run=_compare)
    compare.add_argument("sides", nargs="*", metavar="name=value,name=value | POLICY | .")
    compare.add_argument(
        "--url", action="append", help="twice: compare these servers in place of settings"
    )
    compare.add_argument("--pairs", type=int, metavar="N", help="runs of each side; 6 unless told")
    for parser in (bench, sweep, compare):
        _add_server(parser)
        add_load(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="to start, or as the URL's server names it; none: bundled, or its first")
    add("--engine", help="auto, torch, vllm or simulator")
    add("--knob", action="append", metavar="NAME=VALUE", help="of the server that is started")
    add("--option", action="append", metavar="NAME=VALUE", help="of its engine")
    add("--api-key", help=f"of the URL; else ${_KEY}")
    add("--json", metavar="FILE", help="write all that was measured; - is standard output")
    add("--markdown", metavar="FILE", help="write the tables; - is standard output")
    add("--quiet", action="store_true", help="no progress bar")


def _bench(args: argparse.Namespace) -> int:
    own, options = _split(args)
    if not own["url"]:
        with _session(own) as session:
            return _tell(session.bench(progress=not own["quiet"], **options), own)
    from llmserve.bench.cell import make_load, run_job
    from llmserve.bench.repeats import Repeats
    from llmserve.bench.slo import parse_slo

    slo = parse_slo(options.pop("slo", None))
    settings = {n: options.pop(n) for n in ("repeats", "warmup") if n in options}
    load = make_load(options.pop("load", None), options)
    with _targets([own["url"]], own) as (runtime, (target,)):
        job = Repeats(
            target, load, slo=slo, engine="http", model=target.model,
            seed=getattr(load, "seed", 0), **settings,
        )  # fmt: skip
        return _tell(run_job(runtime, job, progress=not own["quiet"]), own)


def _sweep(args: argparse.Namespace) -> int:
    from llmserve.lab.options import read_axes

    axes: dict[str, Any] = dict(read_axes(vars(args).pop("axes")))
    own, options = _split(args)
    with _session(own) as session:
        return _tell(session.sweep(progress=not own["quiet"], **axes, **options), own)


def _compare(args: argparse.Namespace) -> int:
    from llmserve.lab.options import read_setting

    sides = [read_setting(text) for text in vars(args).pop("sides")]
    own, options = _split(args)
    urls = own["url"] or []
    if len(sides) + len(urls) != 2 or len(urls) == 1:
        raise ValueError("compare takes two settings, or --url twice")
    if sides:
        with _session(own) as session:
            first, second = sides
            found = session.compare(first, second, progress=not own["quiet"], **options)
            return _tell(found, own)
    from llmserve.bench.cell import make_load, run_job
    from llmserve.bench.slo import parse_slo
    from llmserve.lab.compare import Comparing
    from llmserve.lab.sides import Side

    async def nothing() -> None:
        """A server at an address is entered by asking it."""

    slo = parse_slo(options.pop("slo", None))
    settings = {n: options.pop(n) for n in ("pairs", "warmup") if n in options}
    load = make_load(options.pop("load", None), options)
    with _targets(urls, own) as (runtime, targets):
        a, b = (Side(url, t, nothing) for url, t in zip(urls, targets, strict=True))
        job = Comparing(a, b, load, slo=slo, seed=getattr(load, "seed", 0), **settings)
        return _tell(run_job(runtime, job, progress=not own["quiet"]), own)


_OWN = ("url", "model", "engine", "knob", "option", "api_key", "json", "markdown", "quiet")


def _split(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What concerns the server and the output, and the arguments of the measurement."""
    given = vars(args)
    own = {name: given.pop(name, None) for name in _OWN}
    given.pop("run", None)
    return own, read_load_options(args)


@contextlib.contextmanager
def _session(own: dict[str, Any]) -> Iterator[Session]:
    from llmserve.lab.options import read_setting
    from llmserve.session import serve

    options: dict[str, Any] = {}
    for text in (*(own["knob"] or ()), *(own["option"] or ())):
        setting = read_setting(text)
        if isinstance(setting, str):
            raise ValueError(f"--knob and --option take NAME=VALUE, not {text!r}")
        options |= setting
    with serve(own["model"], own["engine"] or "auto", **options) as session:
        yield session


@contextlib.contextmanager
def _targets(
    urls: list[str], own: dict[str, Any]
) -> Iterator[tuple[Runtime, list[HttpTarget]]]:
    """Clients of these servers on a loop of their own; they are in this process alone."""
    if own["engine"] or own["knob"] or own["option"]:
        raise ValueError("--engine, --knob and --option are of a server to start, not of a --url")
    from llmserve.bench.client import Client, ReplyError
    from llmserve.bench.http import HttpTarget
    from llmserve.clock import MonotonicClock
    from llmserve.runtime import Runtime

    key = own["api_key"] or os.environ.get(_KEY) or "none"
    clients = [Client(url, key) for url in urls]
    runtime = Runtime()
    try:
        models = [own["model"] or runtime.call(_first_model(client)) for client in clients]
        clock = MonotonicClock()
        yield runtime, [HttpTarget(c, m, clock) for c, m in zip(clients, models, strict=True)]
    except ReplyError as error:
        raise OSError(f"{' and '.join(urls)}: {error}") from error
    finally:
        for client in clients:
            runtime.call(client.aclose())
        runtime.close()


async def _first_model(client: Client) -> str:
    answer = await client.ask("GET", f"{client.url}/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise OSError("the server lists no model: give --model") from None


def _tell(found: Measured, own: dict[str, Any]) -> int:
    texts = {"json": found.to_json, "markdown": found.to_markdown}
    asked = {form: own[form] for form in texts if own[form]}
    for form, path in asked.items():
        text = texts[form]().rstrip() + "\n"
        if path == "-":
            sys.stdout.write(text)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    if "-" not in asked.values():
        sys.stdout.write(f"{found}\n")
    for warning in found.warnings():
        sys.stderr.write(f"llmserve: {warning}\n")
    served = getattr(found, "n", None)
    if served == 0:
        sys.stderr.write("llmserve: no request was served\n")
        return 1
    return WARNED if found.warnings() else 0
