"""`llmserve bench`, `sweep`, `compare`, `tune`: measure a server of one's own, or any OpenAI URL.

Exit status: 0 measured; 1 it could not be, or nothing was served; 2 no such option; 3 measured, but
the figures come with a warning (requests not served, the client was the limit, a contaminated
cache, an interrupt).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from llmserve.bench.run.client import KEY
from llmserve.core.validation import mistyped
from llmserve.engines import registry
from llmserve.entrypoints.commands.load_options import (
    add_address,
    add_bench,
    add_compare,
    add_load,
    add_output,
    add_sweep,
    add_tune,
)

if TYPE_CHECKING:
    from llmserve.entrypoints.commands.measure import Kind, MeasureCommand, Measured
    from llmserve.entrypoints.session.session import Session

WARNED = 3
_STARTING = ("engine", "knob", "option")


def add_commands(commands: Any) -> None:
    """To argparse's subparsers of the command line."""
    bench = commands.add_parser(
        "bench", help="put a load on a server and report the figures", allow_abbrev=False
    )
    bench.set_defaults(run=lambda args: _run("bench", args))
    add_address(bench, "of an OpenAI endpoint (…/v1); none: start a server here")
    add_bench(bench)
    sweep = commands.add_parser(
        "sweep", help="measure every combination of knobs and loads", allow_abbrev=False
    )
    sweep.set_defaults(run=lambda args: _run("sweep", args))
    add_address(sweep, "of a server; its knobs are turned where it is an llmserve")
    add_sweep(sweep)
    compare = commands.add_parser(
        "compare", help="two settings, or two servers, with a verdict", allow_abbrev=False
    )
    compare.set_defaults(run=lambda args: _run("compare", args))
    add_address(
        compare, "of an llmserve; twice: two servers in place of settings", several=True
    )
    add_compare(compare)
    tune = commands.add_parser(
        "tune", help="the knobs that serve a load best, without a restart", allow_abbrev=False
    )
    tune.set_defaults(run=lambda args: _run("tune", args))
    add_address(tune, "of an llmserve")
    add_tune(tune)
    for parser in (bench, sweep, compare, tune):
        _add_server(parser)
        add_output(parser)
        add_load(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="to start, or as the URL's server names it; none: bundled, or its first")
    add("--engine", help=", ".join(registry.names()))
    add("--knob", action="append", metavar="NAME=VALUE", help="of the server that is started")
    add("--option", action="append", metavar="NAME=VALUE", help="of its engine")
    add("--api-key", help=f"of the URL; else of --key-env, else ${KEY}")


def _run(kind: Kind, args: argparse.Namespace) -> int:
    from llmserve.entrypoints.commands.measure import MeasureCommand

    given = vars(args)
    del given["run"]
    starting = {name: given.pop(name) for name in _STARTING}
    command = MeasureCommand(kind, args)
    if command.urls and any(starting.values()):
        raise ValueError("--engine, --knob and --option are of a server to start, not of a --url")
    return _report(command.measure(lambda: _start(command.model, **starting)), command)


def _start(
    model: str | None, engine: str | None, knob: list[str] | None, option: list[str] | None
) -> Session:
    from llmserve.entrypoints.commands.settings import read_setting
    from llmserve.entrypoints.session.serve import serve

    def read(name: str, texts: list[str] | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in texts or ():
            setting = read_setting(text)
            if isinstance(setting, str):
                raise mistyped(name, "NAME=VALUE", text)
            found |= setting
        return found

    return serve(
        model, engine or registry.AUTO, knobs=read("--knob", knob), **read("--option", option)
    )


def _report(found: Measured, command: MeasureCommand) -> int:
    if not command.write(found, sys.stdout.write):
        sys.stdout.write(f"{found}\n")
    for warning in found.warnings():
        sys.stderr.write(f"llmserve: {warning}\n")
    if found.n == 0:
        sys.stderr.write("llmserve: no request was served\n")
        return 1
    return WARNED if found.warnings() else 0
