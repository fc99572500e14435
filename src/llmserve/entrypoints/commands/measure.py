"""What was typed after `bench`, `sweep`, `compare`, `tune`: one meaning for terminal and magic."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llmserve.entrypoints.commands.load_options import read_load_options
from llmserve.entrypoints.commands.settings import read_axes, read_setting, read_tuning

if TYPE_CHECKING:
    from llmserve.engines.tokenizer import Tokenizer
    from llmserve.lab.calibration.calibration import Calibration
    from llmserve.lab.remote import Remote

_OF_A_URL = ("key_env", "api_key", "plain", "tokenizer")
_OWN = ("url", "model", *_OF_A_URL, "json", "markdown", "quiet")


class Measured(Protocol):
    @property
    def n(self) -> int:
        """Requests that ended well."""
        ...

    def to_json(self) -> str: ...
    def to_markdown(self) -> str: ...
    def warnings(self) -> list[str]: ...


class MeasuredServer(Protocol):
    """A Session or a Remote."""

    def bench(self, **options: Any) -> Measured: ...
    def sweep(self, **axes: Any) -> Measured: ...
    def compare(self, a: Any, b: Any, **options: Any) -> Measured: ...
    def tune(self, **options: Any) -> Measured: ...


Kind = Literal["bench", "sweep", "compare", "tune"]


class MeasureCommand:
    """What to measure, and where. ValueError here where the words contradict, before it."""

    def __init__(self, kind: Kind, args: argparse.Namespace) -> None:
        given = vars(args)
        self._kind = kind
        self._axes = read_axes(given.pop("axes")) if kind == "sweep" else {}
        self._sides = [read_setting(text) for text in given.pop("sides", ())]
        self._own: dict[str, Any] = {name: given.pop(name, None) for name in _OWN}
        self.model: str | None = self._own["model"]
        tuning = read_tuning(given.pop("words")) if kind == "tune" else (None, None)
        saved = given.pop("calibration", None)
        self._options = read_load_options(args) | {"progress": not self._own["quiet"]}
        self._options |= {
            name: value for name, value in zip(("slo", "knobs"), tuning, strict=True) if value
        }
        if saved is not None:
            self._options["calibration"] = _calibration(saved)
        self._check()
        self._check_files()
        self._key = self._read_key()

    @property
    def urls(self) -> list[str]:
        found = self._own["url"] or []
        return [found] if isinstance(found, str) else found

    def _check(self) -> None:
        own = self._own
        if self._kind == "compare" and (len(self._sides), len(self.urls)) not in (
            (2, 0), (2, 1), (0, 2),
        ):  # fmt: skip
            raise ValueError("compare takes two settings, or --url twice")
        if self.urls and "own_process" in self._options:
            raise ValueError("--own-process and --here are of a server to start, not of a --url")
        if self.urls and "response_cache" in self._options:
            raise ValueError(
                "--response-cache is measured in the server's own process: leave --url out"
            )
        if not self.urls and (wrong := [name for name in _OF_A_URL if own[name]]):
            raise ValueError(f"--{wrong[0].replace('_', '-')} is of a --url")
        if own["json"] == own["markdown"] == "-":
            raise ValueError("standard output takes --json or --markdown, not both")
        if twice := self._axes.keys() & self._options.keys():
            name = min(twice)
            raise ValueError(f"{name} is an axis of the sweep: leave its option out")

    def _check_files(self) -> None:
        """OSError before anything is measured, where it could not be written afterwards."""
        for form in ("json", "markdown"):
            if (path := self._own[form]) not in (None, "-"):
                with open(path, "a", encoding="utf-8"):
                    pass

    def _read_key(self) -> str | None:
        name: str | None = self._own["key_env"]
        key: str | None = self._own["api_key"]
        if name is None:
            return key
        if key:
            raise ValueError("give --api-key or --key-env, not both")
        if key := os.environ.get(name):
            return key
        raise ValueError(  # what was typed is not repeated: it may be the key itself
            "--key-env takes the NAME of an environment variable that holds the key, and there is "
            "none of that name; from a cell: os.environ[NAME] = getpass.getpass()"
        )

    def measure(self, start: Callable[[], AbstractContextManager[MeasuredServer]]) -> Measured:
        """start: gives the server that is measured where there is no --url."""
        if not self.urls:
            with start() as server:
                return self._measure(server)
        with self._remote() as remote:
            if len(self.urls) == 2:
                return remote.against(self.urls[1], model=self.model, **self._options)
            return self._measure(remote)

    def _measure(self, server: MeasuredServer) -> Measured:
        if self._kind == "bench":
            return server.bench(**self._options)
        if self._kind == "sweep":
            return server.sweep(**self._axes, **self._options)
        if self._kind == "tune":
            return server.tune(**self._options)
        a, b = self._sides
        return server.compare(a, b, **self._options)

    def _remote(self) -> Remote:
        from llmserve.lab.remote import Remote

        extra: dict[str, Any] | None = {} if self._own["plain"] else None
        folder = self._own["tokenizer"]
        return Remote(
            self.urls[0], api_key=self._key, model=self.model, extra=extra,
            tokenizer=None if folder is None else _tokenizer(Path(folder)),
        )  # fmt: skip

    def write(self, found: Measured, show: Callable[[str], object]) -> bool:
        """Into the files that were named; `show` gets what is for `-`. Whether it got anything.

        Where a file cannot be written `show` gets the figures, which took minutes to measure.
        """
        printed = False
        for form, text_of in (("json", found.to_json), ("markdown", found.to_markdown)):
            path = self._own[form]
            if path is None:
                continue
            text = text_of().rstrip() + "\n"
            if path == "-":
                printed = True
                show(text)
            else:
                try:
                    Path(path).write_text(text, encoding="utf-8")
                except OSError:
                    show(f"{found}\n")
                    raise
        return printed


def _calibration(path: str) -> Calibration:
    from llmserve.lab.calibration.calibration import Calibration

    return Calibration.load(path)


def _tokenizer(folder: Path) -> Tokenizer:
    from llmserve.engines.torch.text.tokenizer import open_tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer takes a model's folder; {folder} has no tokenizer.json")
    return open_tokenizer(folder)
