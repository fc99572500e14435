"""The model as a start opens it: by a proof kept from an earlier start, else proven now.

With a kept proof neither transformers nor its modelling code is imported: weights are read from
the folder, and the proven form must give the kept logits again. All else is as `load` has it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

from torch import Tensor

from llmserve.engines.torch.kv.budget import free_bytes
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.direct_weights import NetworkFacts, note_facts, read_weights
from llmserve.engines.torch.model.flat_model import FlatModel, General
from llmserve.engines.torch.model.loading import pick_device, read
from llmserve.engines.torch.model.proof_store import FormProof, ProofStore, compared
from llmserve.engines.torch.model.select_forward import (
    ForwardChoices,
    NotHere,
    ReportStage,
    chosen,
    load,
)
from llmserve.engines.torch.model.verify import check_again
from llmserve.engines.torch.model.weights import Weights
from llmserve.engines.torch.options import TorchOptions

DIRECT = ("fused", "compact")
"""Forms that need nothing of transformers' network but its weights."""
EACH_START = "made at each start"


@dataclass(frozen=True, slots=True)
class Unproven:
    """What it takes to prove a faster form of a model that serves in its plain one."""

    options: TorchOptions
    folder: Path
    facts: NetworkFacts
    expected: list[Tensor]
    store: ProofStore | None
    started: float


@dataclass(frozen=True, slots=True)
class OpenedModel:
    model: FlatModel
    proof: str
    """Where its proof is from, and what that took, in words."""
    unproven: Unproven | None = None
    """Of a form that may be proven while this one serves."""


class DirectChoices(ForwardChoices):
    """The forms that can be built from weights read directly, and no other."""

    def __init__(
        self, options: TorchOptions, report: ReportStage, folder: Path, facts: NetworkFacts,
        expected: list[Tensor], settled: FormProof | None = None,
    ) -> None:
        """settled: takes from it what else is found by racing."""
        self._folder, self.facts, self.expected = folder, facts, expected
        self._settled = settled
        self.settled_wide: int | None = None
        self._beside: Future[float] | None = None
        self.report = report
        super().__init__(options, report)

    def start_anew(self) -> None:
        facts = self.facts
        self.model = FlatModel(
            None, General(None), "", facts.parameters, facts.geometry, facts.max_model_len,
            facts.vocab_size, frozenset(facts.eos_ids), facts.architecture,
        )
        self._expected, self._weights = self.expected, None

    def take(self, name: str) -> None:
        if name not in DIRECT:
            raise NotHere("it is a form of transformers' network")
        super().take(name)

    def wide(self) -> int | None:
        self.settled_wide = super().wide() if self._settled is None else self._settled.wide
        return self.settled_wide

    def _take_apart(self) -> Weights:
        if self._weights is None:
            self._weights = read_weights(self._folder, self.facts)
        return self._weights

    def _compare(self, quantization: str | None = None) -> float:
        """Of a form that is settled, the first comparison runs beside the second, where there is
        one: of torch's products and of kernels over the same weights."""
        if self._settled is None or quantization is not None:
            return super()._compare(quantization)
        if self._settled.form == "fused" and self.model.few is None:
            compact = replace(self.model)  # takes long prompts alone
            self._beside = in_thread(partial(check_again, compact, self._expected, decodes=False))
            return 0.0
        off = check_again(self.model, self._expected)
        return max(off, self._beside.result()) if self._beside is not None else off

    def _race(self, weights: Weights, wide: int | None) -> None:
        if self._settled is None:
            super()._race(weights, wide)
        elif self._settled.most_few is not None:
            self.model.most_few = self._settled.most_few


def in_thread(work: Callable[[], float]) -> Future[float]:
    """What it comes to, in a thread of its own."""
    found: Future[float] = Future()

    def main() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # raised in who waits
            found.set_exception(error)

    threading.Thread(target=main, name="comparison", daemon=True).start()
    return found


def open_model(
    options: TorchOptions, report: ReportStage = lambda _: None, *, plain_first: bool = False
) -> OpenedModel:
    """Raises as `load` does. plain_first: where a proof is yet to be made, the plain form at once
    and what it takes to prove another, unless one was insisted on or memory is short."""
    if not _may_keep(options):
        return OpenedModel(load(options, report), EACH_START)
    folder = Path(options.model_path)
    store = ProofStore.of(folder, options)
    if store is not None and (kept := store.find()) is not None:
        try:
            return _by_proof(kept, options, report, folder)
        except Exception:  # whatever a form that was proven elsewhere fails with
            traceback.print_exc()
            store.forget()
    started = time.perf_counter()
    model, expected = read(options)
    facts = note_facts(model, folder)
    if facts is None:
        return OpenedModel(load(options, report, (model, expected)), EACH_START)
    unproven = Unproven(options, folder, facts, expected, store, started)
    if plain_first and _may_wait(options, model):
        said = "being made; transformers' modelling code serves meanwhile"
        return OpenedModel(model, said, unproven)
    del model  # its weights are read again
    return prove(unproven, DirectChoices(options, report, folder, facts, expected))


def _may_wait(options: TorchOptions, model: FlatModel) -> bool:
    """Whether another form can be proven beside this one, and replies are the same by both."""
    size = model.parameters * model.geometry.dtype.itemsize
    alike = options.forward == "auto" and options.quantization is None
    return alike and 2 * size < free_bytes(model.geometry.device)


def prove(unproven: Unproven, ways: DirectChoices) -> OpenedModel:
    """The fastest form that proves right, and its proof kept."""
    options = unproven.options
    try:
        chosen(ways, options)
    except UnsupportedModel:
        if options.forward != "auto":
            raise
        return OpenedModel(load(options, ways.report), EACH_START)
    took = time.perf_counter() - unproven.started
    left = _keep(unproven.store, ways, took)
    return OpenedModel(ways.model, f"made at this start in {took:.1f} s, {left}")


def _keep(store: ProofStore | None, ways: DirectChoices, took_s: float) -> str:
    """What became of it, in words."""
    if ways.failed:
        return "not kept: kernels of our own failed"
    if store is None or not store.keep(proof_of(ways, took_s)):
        return "not kept: the user's cache has no safe folder for it"
    return "kept for the next one"


def proof_of(ways: DirectChoices, took_s: float) -> FormProof:
    """Of the form that was taken."""
    model = ways.model
    return FormProof(
        facts=ways.facts,
        form="fused" if ways.form == "fused" else "compact",
        path=model.path,
        wide=ways.settled_wide,
        most_few=None if model.most_few == inf else int(model.most_few),
        took_s=took_s,
        logits=compared(ways.expected),
    )


def _may_keep(options: TorchOptions) -> bool:
    direct = options.forward in ("auto", *DIRECT)
    return direct and options.is_folder and pick_device(options.device).type == "cpu"


def _by_proof(
    kept: FormProof, options: TorchOptions, report: ReportStage, folder: Path
) -> OpenedModel:
    start = time.perf_counter()
    ways = DirectChoices(options, report, folder, kept.facts, kept.expected(), kept)
    ways.take(kept.form)
    ways.model.path = kept.path
    took = time.perf_counter() - start
    return OpenedModel(
        ways.model,
        f"kept from an earlier start, where it took {kept.took_s:.1f} s; "
        f"read and compared again in {took:.2f} s",
    )
