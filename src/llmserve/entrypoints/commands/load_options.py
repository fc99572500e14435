"""The options of a load as words: one list for the command line and for the magic."""

from __future__ import annotations

import argparse
from typing import Any

from llmserve.bench.load.arrivals import PROCESSES
from llmserve.bench.load.request_kinds import NAMED, LogNormal
from llmserve.bench.load.workload import FIELDS
from llmserve.bench.run.client import KEY
from llmserve.core.validation import number

_REPLAY = ("speed", "longest")
_SHARED_WITH_REPLAY = ("rate", "concurrency", "requests", "seed", "same_prompts")


def add_load(parser: argparse.ArgumentParser) -> None:
    """What is sent, and when."""
    add = parser.add_argument
    add("--rate", type=number, metavar="PER_S", help="requests per second (open loop)")
    add("--process", choices=PROCESSES, help="how they arrive; poisson by default")
    add("--rate-to", type=number, metavar="PER_S", help="where ramp, step and sine go")
    add("--burstiness", type=number, metavar="X", help="of gamma: below 1 they come in bursts")
    add("--period", dest="period_s", type=number, metavar="S", help="how long a day or ramp takes")
    add("--duration", dest="duration_s", type=number, metavar="S", help="how long they arrive")
    add("--concurrency", type=number, metavar="N", help="clients, each with one request at a time")
    add("--requests", type=number, metavar="N", help="how many in all")
    size = "N, LOW-HIGH or lognormal:MEDIAN:SIGMA:HIGH"
    add("--prompt-tokens", type=length, metavar="N", help=f"length of the prompts: {size}")
    add("--max-tokens", type=length, metavar="N", help="length of the replies, likewise")
    add("--prefix-tokens", type=number, metavar="N", help="of the prompt, shared within a group")
    add("--prefix-groups", type=number, metavar="N", help="how many groups")
    add("--turns", type=length, metavar="N", help="of each chat, 3 or 2-5")
    add("--think", dest="think_s", type=number, metavar="S", help="before a chat's next turn")
    add("--mix", metavar="KINDS", help=f"'long:30 short:70'; kinds: {', '.join(NAMED)}")
    add("--tenant", metavar="NAME", help="tenant that requests count for")
    add("--priority", type=number, metavar="P", help="lower goes first, where policy=priority")
    add("--seed", type=number, metavar="S", help="the same arrivals again")
    add("--same-prompts", action="store_true", default=None, help="let an earlier run's cache help")
    add("--repeat-share", type=number, metavar="X", help="0.3: so many come once more")
    add("--replay", metavar="FILE", help="a trace: ours, Mooncake, BurstGPT, Azure or ShareGPT")
    add("--speed", type=number, metavar="X", help="of a replay: 2 is twice as fast")
    add("--longest", type=number, metavar="N", help="of a replay: leave out what has more tokens")
    add("--slo", metavar="LIMITS", help="'ttft:200 tpot:50', in ms: counts goodput")
    add("--no-warmup", dest="warmup", action="store_false", default=None, help="count all")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """What only a bench has."""
    add = parser.add_argument
    add("--repeats", type=int, metavar="N", help="runs; 3 by default")
    add(
        "--own-process", action="store_true", default=None,
        help="send over HTTP from a process of its own; by default, from 100 requests/s and 4 "
        "cores up",
    )  # fmt: skip
    add(
        "--response-cache", action="store_true", default=None,
        help="keep replies, and show hits of a --repeat-share apart",
    )
    add("--here", dest="own_process", action="store_false", help="send from the server's own loop")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """What only a sweep has."""
    add = parser.add_argument
    add("axes", nargs="*", metavar="name=value,value,…")
    add("--rounds", type=int, metavar="N", help="runs of each point; 3 by default")
    add("--path", metavar="FILE", help="keep each run, and go on from there")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """What only a comparison has."""
    add = parser.add_argument
    add("sides", nargs="*", metavar="name=value,name=value | POLICY | .")
    add("--pairs", type=int, metavar="N", help="runs of each side; 6 by default")


def add_tune(parser: argparse.ArgumentParser) -> None:
    """What only tuning has."""
    add = parser.add_argument
    add("words", nargs="*", metavar="ttft_p95=300ms | knob=value,value,…")
    add("--maximize", metavar="WHAT", help="goodput, tokens or requests; goodput by default")
    add("--budget", dest="budget_s", type=seconds, metavar="S", help="in all, 180s by default")
    add("--trial", dest="trial_s", type=seconds, metavar="S", help="of one trial, 5s by default")
    add("--apply", action="store_true", default=None, help="leave the winner in force")
    add("--calibration", metavar="FILE", help="as Calibration.save wrote it; none: it is made")


def add_address(parser: argparse.ArgumentParser, url_help: str, *, several: bool = False) -> None:
    """A server elsewhere: its `--url`, and how it wants to be asked."""
    add = parser.add_argument
    add("--url", action="append" if several else "store", help=url_help)
    add("--key-env", metavar="NAME", help=f"environment variable with the URL's key; else ${KEY}")
    add("--tokenizer", metavar="FOLDER", help="the model's: prompts of a URL exact in its tokens")
    add("--plain", action="store_true", help="send a URL no field that OpenAI's API lacks")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the figures go, and what is shown meanwhile."""
    add = parser.add_argument
    add("--json", metavar="FILE", help="write all that was measured; - is standard output")
    add("--markdown", metavar="FILE", help="write the tables; - is standard output")
    add("--quiet", action="store_true", help="no progress bar")


def read_load_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was typed, as arguments of `Session.bench`. ValueError where options contradict."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    replay = given.pop("replay", None)
    if replay is None:
        if wrong := [name for name in _REPLAY if name in given]:
            raise ValueError(f"--{wrong[0]} is of a --replay")
        return {name: _read(name, value) for name, value in given.items()}
    from llmserve.bench.load.traces import read_load

    asked = {n: given.pop(n) for n in (*_REPLAY, *_SHARED_WITH_REPLAY) if n in given}
    own = ("own_process", "slo", "warmup", "repeats", "rounds", "pairs", "progress", "path",
           "maximize", "budget_s", "trial_s", "apply", "knobs", "calibration")
    if wrong := [name for name in given if name not in own]:
        name = wrong[0].removesuffix("_s").replace("_", "-")
        raise ValueError(f"--{name} has no meaning in a --replay")
    return given | {"load": read_load(replay, **asked)}


def _read(name: str, value: Any) -> Any:
    """ValueError for a field of the load that is wrong, before any server is asked."""
    return FIELDS[name](value) if name in FIELDS else value


def seconds(text: str) -> Any:
    """`180s` or `180`."""
    return number(text.removesuffix("s"))


def length(text: str) -> Any:
    """`64`, `8-128` or `lognormal:128:0.8:2048` (sigma and the highest may be left out). What is
    none of these comes as it was typed, for the load to say so."""
    if text.startswith("lognormal:"):
        given = [number(part) for part in text.split(":")[1:]]
        named = dict(zip(("median", "sigma", "high"), given, strict=False))
        return LogNormal(**named) if len(given) < 4 else text
    low, sign, high = text.partition("-")
    return (number(low), number(high)) if sign and low else number(text)
