"""Sweep a live server: every combination of knobs and loads, in rounds, without a restart.

Each round visits all points, the next one in the other direction, so that a drift of the machine
does not favour the points that come first. A file keeps each run: the same call goes on from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from llmserve.bench.load.workload import Load, Workload
from llmserve.bench.results.report import Report
from llmserve.bench.results.slo import Slo, parse_slo
from llmserve.bench.run.cell import make_load, nothing, run_job
from llmserve.bench.run.job import GONE, Job
from llmserve.core.knobs import SPECS, KnobError
from llmserve.core.validation import plain, whole
from llmserve.lab.settings import NeedsRestart, Stage, Switch
from llmserve.lab.sweep_result import Point, Sweep, combinations
from llmserve.plots.live_figure import LiveFigure, shown
from llmserve.serving.runtime import Runtime

ROUNDS = 3
_LOADS = frozenset(field.name for field in fields(Workload))


class Header(msgspec.Struct, frozen=True, tag=True):
    """First line of the file: what was asked, so that other questions do not mix into it."""

    workload: str
    engine: str
    model: str
    slo: Slo | None
    knobs: dict[str, Any]
    """Those that are not swept: with others the same point is another."""


class Kept(msgspec.Struct, frozen=True, tag=True):
    """One run, under its point and round."""

    values: dict[str, Any]
    round: int
    report: Report


class Journal:
    """The runs of a sweep, in a file where one is wanted."""

    def __init__(self, path: Path | None, header: Header) -> None:
        self._path = path
        self.found: dict[tuple[str, int], Report] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size:
            self._read(path, header)
        else:
            path.write_bytes(msgspec.json.encode(header) + b"\n")

    def _read(self, path: Path, header: Header) -> None:
        first, *rest = (data := path.read_bytes()).split(b"\n")
        try:
            same = msgspec.json.decode(first, type=Header) == header
        except msgspec.MsgspecError:
            raise ValueError(f"{path} holds no sweep; name another file") from None
        if not same:
            raise ValueError(
                f"{path} holds a sweep of another workload or server, or with other knobs; name "
                "another file"
            )
        whole = len(first) + 1
        for line in rest[:-1]:  # what is behind the last newline is no line
            try:
                kept = msgspec.json.decode(line, type=Kept)
            except msgspec.MsgspecError:
                break
            self.found[key(kept.values), kept.round] = kept.report
            whole += len(line) + 1
        if not rest:  # its writer was killed in the first line, or in a later one
            path.write_bytes(first + b"\n")
        elif whole < len(data):  # cut, not written anew: a disk that is full would take it all
            os.truncate(path, whole)

    def keep(self, values: Mapping[str, Any], number: int, report: Report) -> None:
        self.found[key(values), number] = report
        if self._path is not None:
            line = msgspec.json.encode(Kept(dict(values), number, report))
            with self._path.open("ab") as file:
                file.write(line + b"\n")


def key(values: Mapping[str, Any]) -> str:
    return msgspec.json.encode(values, order="sorted").decode()


class Sweeping(Job[Sweep]):
    """Axes are knobs (of the server) and fields of Workload (of the load), by name."""

    def __init__(
        self,
        stage: Stage,
        grid: Mapping[str, Sequence[Any]],
        load: Load,
        *,
        rounds: int = ROUNDS,
        warmup: bool = True,
        slo: Slo | None = None,
        path: str | Path | None = None,
    ) -> None:
        """KnobError or ValueError for what no point of the grid may be, before anything runs."""
        rounds = whole("rounds", rounds, 1, exact=True)
        if not grid:
            raise ValueError("a sweep needs an axis: max_num_seqs=[1, 8]")
        self._switch, self._target = Switch(stage.panel), stage.target
        self._load, self._slo = load, slo
        self._rounds, self._warmup = rounds, warmup
        self._points = combinations({name: list(values) for name, values in grid.items()})
        self._settings = {
            key(values): self._switch.read(self._split(values)[0]) for values in self._points
        }
        rest = {n: value for n, value in stage.panel.knobs.as_dict().items() if n not in grid}
        header = Header(str(load), stage.engine, stage.model, slo, rest)
        self._journal = Journal(None if path is None else Path(path), header)
        self._skipped: dict[str, str] = {}
        self._empty: dict[str, list[Report]] = {}
        super().__init__(rounds * len(self._points), load.about)

    async def run(self) -> Sweep:
        try:
            if self._warmup and not self.stopped:
                await self.warm_up(self._target, self._load)
            for number in range(self._rounds):
                points = self._points if number % 2 == 0 else self._points[::-1]
                for values in points:
                    if not self.stopped:
                        await self._one(values, number)
        finally:
            try:
                await self._switch.back()
            except GONE as error:
                self.lose(error)
        return self.result()

    async def _one(self, values: Mapping[str, Any], number: int) -> None:
        name = key(values)
        if (name, number) in self._journal.found or name in self._skipped:
            self._runs_done += 1
            return
        _, load = self._split(values)
        try:
            await self._switch.to(self._settings[name])
        except NeedsRestart as error:
            self._skipped[name] = str(error)
            return
        except GONE as error:
            self.lose(error)
            return
        words = f"round {number + 1}: " + " ".join(f"{k}={v}" for k, v in values.items())
        seed = load.seed if isinstance(load, Workload) else 0
        report = await self.measure(words, self._target, load.with_seed(seed + number), self._slo)
        if report.interrupted:
            return
        if report.empty:  # of a server that is gone, say: the same call may find it back
            self._empty.setdefault(name, []).append(report)
        else:
            self._journal.keep(values, number, report)

    def _split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], Load]:
        """The point's knobs, and the load it means."""
        knobs = {name: value for name, value in values.items() if name in SPECS}
        loads = {name: value for name, value in values.items() if name in _LOADS - SPECS.keys()}
        unknown = values.keys() - knobs.keys() - loads.keys()
        if unknown:
            name = min(unknown)
            raise KnobError(name, f"{name} is neither a knob nor a field of Workload")
        if not loads:
            return knobs, self._load
        if not isinstance(self._load, Workload):
            raise ValueError(f"a replayed load has no {', '.join(loads)} to sweep")
        if "rate" in loads:
            loads["concurrency"] = None
        elif "concurrency" in loads:
            loads |= {"rate": None, "rate_to": None, "process": "poisson"}
        return knobs, replace(self._load, **loads)

    def result(self) -> Sweep:
        points = []
        for values in self._points:
            name = key(values)
            found = {
                number: report
                for number in range(self._rounds)
                if (report := self._journal.found.get((name, number))) is not None
            }
            points.append(
                Point(
                    values=values,
                    runs=tuple(found.values()),
                    rounds=tuple(found),
                    skipped=self._skipped.get(name),
                    empty=tuple(self._empty.get(name, ())),
                )
            )
        return Sweep(
            workload=str(self._load),
            points=tuple(points),
            rounds=self._rounds,
            interrupted=self.stopped,
            lost=self.lost,
        )


def sweep(
    runtime: Runtime,
    stage: Stage,
    load: Load | None = None,
    *,
    rounds: int = ROUNDS,
    warmup: bool = True,
    slo: Slo | str | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    **axes: Any,
) -> Sweep:
    """As a cell calls it. A list (a range, an array) is an axis; other fields of Workload
    are the load's own.

    A live plot is shown in a notebook. An interrupt keeps what was measured; with `path` the same
    call goes on later.
    """
    axes = {name: plain(value) for name, value in axes.items()}
    grid = {name: value for name, value in axes.items() if isinstance(value, list)}
    rest = {name: value for name, value in axes.items() if name not in grid}
    job = Sweeping(
        stage, grid, make_load(load, rest), rounds=rounds, warmup=warmup,
        slo=parse_slo(slo), path=path,
    )  # fmt: skip
    watch = redrawing(job, shown(job.result().sketch())) if progress else nothing
    return run_job(runtime, job, progress=progress, watch=watch)


def redrawing(job: Sweeping, update: Callable[[LiveFigure], None]) -> Callable[[], None]:
    """What draws the curve anew, in the cell's own thread, when another run has ended."""
    drawn = 0

    def watch() -> None:
        nonlocal drawn
        done = job.state.runs_done
        if done != drawn and (found := job.result()).measured():
            drawn = done
            update(found.sketch())

    return watch
