"""The ways to compute the same, the fastest first: each is proven here before it is taken.

What fails falls back to the next one, unless it was insisted on.
"""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.compact_llama import Compact
from llmserve.engines.torch.model.flat_model import FlatModel, General
from llmserve.engines.torch.model.int8_linears import BY_HALVES, overflows
from llmserve.engines.torch.model.loading import read
from llmserve.engines.torch.model.packed_linears import Kernels, fix_linears, wide_rows
from llmserve.engines.torch.model.race import give_back, slow_prompts, slow_steps
from llmserve.engines.torch.model.row_blocks import RowBlocks
from llmserve.engines.torch.model.verify import check_against, check_few
from llmserve.engines.torch.model.weights import Weights, fits, take_apart
from llmserve.engines.torch.options import TorchOptions

if TYPE_CHECKING:
    from llmserve.engines.torch.cpu_kernels.kernel import FusedRows

WAYS = {
    "auto": ("fused", "compact", "packed", "plain"),
    "fused": ("fused",),
    "compact": ("compact",),
    "general": ("packed", "plain"),
    "plain": ("plain",),
}
MOST_FEW = 128
"""Rows that kernels of our own take at once."""
LATE_S = 2.0

ReportStage = Callable[[str], None]
"""Takes what a start is busy with, should it take long; "" when it is over. From any thread."""


class NotHere(ValueError):
    """This way is not for this model or machine: the reason."""


Loaded = tuple[FlatModel, list[Tensor]]
"""A model by transformers' code, and the logits that proved it."""


def load(
    options: TorchOptions, report: ReportStage = lambda _: None, loaded: Loaded | None = None
) -> FlatModel:
    """Raises UnsupportedModel, or what transformers raises for a model it cannot find or read.
    loaded: by `read`, where it was read already."""
    return chosen(ForwardChoices(options, report, loaded), options)


def chosen(ways: ForwardChoices, options: TorchOptions) -> FlatModel:
    """The model in the first way that it proves right and, where it races, fast."""
    failed = ""
    for name in WAYS[options.forward]:
        try:
            ways.take(name)
        except NotHere as reason:
            if options.forward == name:
                raise UnsupportedModel(
                    f"the torch engine has no {name} form of this model here: {reason}"
                ) from None
        except (AttributeError, RuntimeError, TypeError, UnsupportedModel) as error:
            if options.forward == name:
                raise UnsupportedModel(f"its {name} form fails: {error}") from error
            failed = f": {error}"
            ways.start_anew()
        else:
            return ways.model
    form = options.quantization or options.forward
    raise UnsupportedModel(f"the torch engine has no {form} form of this model here{failed}")


class ForwardChoices:
    """A model that is to compute in one of them."""

    def __init__(
        self, options: TorchOptions, report: ReportStage, loaded: Loaded | None = None
    ) -> None:
        self._options, self._report, self._loaded = options, report, loaded
        self._note = ""
        self.form = ""
        """The one taken last."""
        self.failed = False
        """Kernels that are for this model and machine failed, which may be of the moment."""
        self.start_anew()

    def start_anew(self) -> None:
        loaded, self._loaded = self._loaded, None
        self.model, self._expected = loaded or read(self._options)
        self._weights: Weights | None = None

    def take(self, name: str) -> None:
        """Compute in that way from now on. Raises NotHere where it is not for this model, and all
        is as it was; whatever else it raises, the network may be in pieces."""
        match name:
            case "fused":
                self._fused()
            case "compact":
                self._compact()
            case "packed":
                self._packed()
            case _:
                if self._options.quantization is not None:
                    raise NotHere(f"it knows no {self._options.quantization}")
        self.form = name
        self.model.path += self._note

    def _fused(self) -> None:
        model, geometry = self.model, self.model.geometry
        if self._options.quantization is not None:
            raise NotHere("its kernels are not for int8")
        if geometry.device.type != "cpu" or geometry.dtype != torch.bfloat16:
            dtype = str(geometry.dtype).removeprefix("torch.")
            raise NotHere(
                f"its kernels are for bfloat16 on a CPU, not for {dtype} on {geometry.device}"
            )
        weights = self._take_apart()
        try:
            rows = self._open_rows(weights)
        except Exception as error:  # numba's own are of many kinds
            self._without_kernels(error)
        wide = self.wide()
        model.compute = Compact(weights, Kernels(wide, plain=True))
        try:
            self._compare()
            model.few, model.most_few = RowBlocks(rows, MOST_FEW), inf
            self._compare()
            model.path = "fused (kernels of our own)"
            if self._options.forward == "auto":
                self._race(weights, wide)
        except Exception as error:
            model.few, model.most_few = None, 0
            model.compute = General(model.network)  # lets go of the weights
            rows.stop()
            self._without_kernels(error)

    def _race(self, weights: Weights, wide: int | None) -> None:
        """Raises NotHere where the kernels do not pay."""
        slow = slow_steps(self.model, weights)
        if slow is None and slow_prompts(self.model, weights, wide):
            self.model.most_few = MOST_FEW
            self.model.path += f", steps of over {MOST_FEW} rows by torch"
        give_back()
        if slow is not None:
            raise NotHere(slow)

    def _open_rows(self, weights: Weights) -> FusedRows:
        with reporting_late(self._report, "compiling kernels, once per machine"):
            from llmserve.engines.torch.cpu_kernels.kernel import FusedRows

            return FusedRows(
                weights,
                most_rows=MOST_FEW,
                most_tokens=self.model.max_model_len,
                threads=torch.get_num_threads(),
            )

    def _without_kernels(self, error: Exception) -> None:
        """The weights serve the next way."""
        refused = isinstance(error, ValueError) and not isinstance(error, UnsupportedModel)
        if not refused and not isinstance(error, ImportError):
            traceback.print_exc()
            self.failed = True
        self._note = f"; not fused: {error}"
        raise NotHere(str(error)) from error

    def _take_apart(self) -> Weights:
        if self._weights is None:
            model = self.model
            if not fits(model.network, model.geometry, model.max_model_len):
                raise NotHere("its layers are of another kind")
            self._weights = take_apart(model.network, model.geometry, model.max_model_len)
        return self._weights

    def _compact(self) -> None:
        kernels = self._kernels()
        if self._note:
            gc.collect()  # kernels that were not taken hold the weights in a cycle
        self.model.compute = Compact(self._take_apart(), kernels)
        self.model.path = "compact, joined products"
        self._check()

    def _packed(self) -> None:
        if self.model.geometry.device.type != "cpu":
            raise NotHere("products are packed on CPUs")
        fix_linears(self.model.network, self._kernels())
        self.model.path += ", products packed"
        self._check()

    def _kernels(self) -> Kernels:
        geometry, quantization = self.model.geometry, self._options.quantization
        on_cpu = geometry.device.type == "cpu"
        if quantization is not None and not on_cpu:
            raise NotHere(f"{quantization} is for CPUs")
        return Kernels(self.wide() if on_cpu else None, int8=quantization == "int8")

    def wide(self) -> int | None:
        """From how many rows on products are in float32."""
        return wide_rows(self.model.geometry.dtype)

    def _compare(self, quantization: str | None = None) -> float:
        """Raises UnsupportedModel where logits come out wrong; how far off they are."""
        off = check_against(self.model, self._expected, quantization)
        if self.model.few is not None:
            check_few(self.model, self._expected)
        return off

    def _check(self) -> None:
        quantization = self._options.quantization
        off = self._compare(quantization)
        if quantization is not None:
            how = f" {BY_HALVES}" if overflows() else ""
            self.model.path += f", {quantization}{how} (logits {off:.1%} off)"


@contextmanager
def reporting_late(report: ReportStage, what: str) -> Iterator[None]:
    """ReportStage what goes on, where it goes on for long."""
    reported = threading.Event()

    def late() -> None:
        reported.set()
        report(what)

    timer = threading.Timer(LATE_S, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be reporting just now
        if reported.is_set():
            report("")
