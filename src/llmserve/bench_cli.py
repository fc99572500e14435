"""`llmserve bench`, `sweep`, `compare`: measure a server of one's own making, or any OpenAI URL.

Exit status: 0 measured; 1 it could not be, or nothing was served; 3 measured, but the figures
come with a warning (the client was the limit, a contaminated cache, an interrupt).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

from llmserve.bench.options import add_bench, add_load, read_load_options

if TYPE_CHECKING:
    from llmserve.lab.remote import Remote
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
    add_bench(bench)
    sweep = commands.add_parser("sweep", help="measure every combination of knobs and loads")
    sweep.set_defaults(run=_sweep)
    sweep.add_argument("--url", help="of a server; its knobs are turned where it is an llmserve")
    sweep.add_argument("axes", nargs="+", metavar="name=value,value,…")
    sweep.add_argument("--rounds", type=int, metavar="N", help="runs of each point; 3 unless told")
    sweep.add_argument("--path", metavar="FILE", help="keep each run, and go on from there")
    compare = commands.add_parser("compare", help="two settings, or two servers, with a verdict")
    compare.set_defaults(run=_compare)
    compare.add_argument("sides", nargs="*", metavar="name=value,name=value | POLICY | .")
    compare.add_argument(
        "--url", action="append", help="of an llmserve; twice: two servers in place of settings"
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
    add("--plain", action="store_true", help="send a URL no field that OpenAI's API lacks")
    add("--json", metavar="FILE", help="write all that was measured; - is standard output")
    add("--markdown", metavar="FILE", help="write the tables; - is standard output")
    add("--quiet", action="store_true", help="no progress bar")


def _bench(args: argparse.Namespace) -> int:
    own, options = _split(args)
    if own["url"] and "own_process" in options:
        raise ValueError("--own-process and --here are of a server to start, not of a --url")
    with _server(own) as server:
        return _tell(server.bench(progress=not own["quiet"], **options), own)


def _sweep(args: argparse.Namespace) -> int:
    from llmserve.lab.options import read_axes

    axes: dict[str, Any] = dict(read_axes(vars(args).pop("axes")))
    own, options = _split(args)
    with _server(own) as server:
        return _tell(server.sweep(progress=not own["quiet"], **axes, **options), own)


def _compare(args: argparse.Namespace) -> int:
    from llmserve.lab.options import read_setting

    sides = [read_setting(text) for text in vars(args).pop("sides")]
    own, options = _split(args)
    one, *others = own["url"] or [None]
    if (len(sides), len(others)) not in ((2, 0), (0, 1)):
        raise ValueError("compare takes two settings, or --url twice")
    shown = not own["quiet"]
    with _server(own | {"url": one}) as server:
        if sides:
            a, b = sides
            return _tell(server.compare(a, b, progress=shown, **options), own)
        remote = cast("Remote", server)  # there is a --url
        found = remote.against(others[0], model=own["model"], progress=shown, **options)
        return _tell(found, own)


_OWN = ("url", "model", "engine", "knob", "option", "api_key", "plain", "json", "markdown", "quiet")


def _split(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What concerns the server and the output, and the arguments of the measurement."""
    given = vars(args)
    own = {name: given.pop(name, None) for name in _OWN}
    given.pop("run", None)
    return own, read_load_options(args)


def _server(own: dict[str, Any]) -> Session | Remote:
    """The one at --url, or one that is started here."""
    if own["url"]:
        if own["engine"] or own["knob"] or own["option"]:
            raise ValueError(
                "--engine, --knob and --option are of a server to start, not of a --url"
            )
        from llmserve.lab.remote import Remote

        extra: dict[str, Any] | None = {} if own["plain"] else None
        return Remote(own["url"], api_key=own["api_key"], model=own["model"], extra=extra)
    from llmserve.lab.options import read_setting
    from llmserve.opening import serve

    options: dict[str, Any] = {}
    for text in (*(own["knob"] or ()), *(own["option"] or ())):
        setting = read_setting(text)
        if isinstance(setting, str):
            raise ValueError(f"--knob and --option take NAME=VALUE, not {text!r}")
        options |= setting
    return serve(own["model"], own["engine"] or "auto", **options)


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
