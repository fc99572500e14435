"""Train the bundled model from nothing: `python -m llmserve.models.training.train --out FOLDER`.

The rate warms up, stays, and falls linearly at the end. The end is a number of steps or of
minutes, whichever is reached first, so that a run on a busy machine still ends decayed.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from llmserve.models.training.batches import TrainingBatch, pieces, steps
from llmserve.models.training.corpus import FEW, MANY, documents
from llmserve.models.training.export import llama_config, save, train_tokenizer
from llmserve.models.training.network import Llama

log = logging.getLogger("llmserve.models.training.train")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome; the model card says how the bundled run differed."""

    steps: int = 4000
    minutes: float = 600.0
    warmup: int = 80
    decay: float = 0.35
    rate: float = 4e-3
    matrix_rate: float = 5e-3
    weight_decay: float = 0.05
    seed: int = 1
    optimizer: str = "muon"
    compile: bool = True
    workers: int = 2
    lean: tuple[int, int] = (900, 1900)
    every: int = 200

    def scale(self, step: int, minutes: float) -> float:
        """Share of the full rate: up over `warmup` steps, down over the last `decay` of the run."""
        done = max(step / self.steps, minutes / self.minutes)
        return max(0.0, min(1.0, (step + 1) / self.warmup, (1.0 - done) / self.decay))


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which learns from fewer tokens; AdamW for embeddings and norms."""
    matrices = [w for n, w in model.named_parameters() if w.dim() == 2 and "embed" not in n]
    rest = [w for n, w in model.named_parameters() if w.dim() == 1 or "embed" in n]
    adam: dict[str, Any] = {"betas": (0.9, 0.98), "fused": True, "weight_decay": 0.0}
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW([*matrices, *rest], lr=recipe.rate, **adam)]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.matrix_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(rest, lr=recipe.rate, **adam)]


def replica(model: Llama) -> Llama:
    """A second module over the same numbers, with gradients of its own."""
    twin = deepcopy(model)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        ours.data = theirs.data
    return twin


def gradients(model: Llama, waiting: deque[TrainingBatch], count: int) -> float:
    """Take batches until none wait, on one thread.

    Threads that meet once a step, not once an operation, keep their speed on a machine whose
    cores are taken away by others.
    """
    total = 0.0
    while True:
        try:
            batch = waiting.popleft()
        except IndexError:
            return total
        loss = model(batch.tokens, batch.wanted) / count
        loss.backward()
        total += loss.item()


class Trainer:
    """Model, optimizers and counters: what a checkpoint has to hold for a run to go on."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)
        self.recipe, self.tokenizer, self.out = recipe, tokenizer, out
        self.config = llama_config(tokenizer.get_vocab_size())
        self.model = Llama(self.config)
        self.optimizers = optimizers(self.model, recipe)
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step, self.tokens, self.minutes = 0, 0, 0.0
        self.replicas = [self.model, *(replica(self.model) for _ in range(recipe.workers - 1))]
        self.pool = ThreadPoolExecutor(recipe.workers)
        if recipe.compile:
            for layer in [layer for model in self.replicas for layer in model.model.layers]:
                layer.compile(dynamic=True)

    def learn(self, batches: list[TrainingBatch]) -> float:
        """One optimizer step over several batches; returns the mean loss of learned tokens."""
        scale = self.recipe.scale(self.step, self.minutes)
        count = sum(int((batch.wanted >= 0).sum()) for batch in batches)
        self.tokens += sum(batch.tokens.numel() for batch in batches)
        waiting = deque(batches)
        # The first step is alone: two threads must not compile at once.
        active = self.replicas if self.step else self.replicas[:1]
        total = sum(self.pool.map(lambda model: gradients(model, waiting, count), active))
        for other in active[1:]:
            for ours, theirs in zip(self.model.parameters(), other.parameters(), strict=True):
                if theirs.grad is not None:
                    ours.grad = theirs.grad if ours.grad is None else ours.grad.add_(theirs.grad)
                    theirs.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def finished(self) -> bool:
        return self.step >= self.recipe.steps or self.minutes >= self.recipe.minutes

    def keep(self, checkpoint: Path) -> None:
        """Write the loadable folder and, beside it, what is needed to go on from here."""
        weights = self.model.state_dict()
        save(self.out, self.tokenizer, self.config, weights)
        state = {
            "model": weights,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.step, self.tokens, self.minutes),
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)

    def resume(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.minutes = state["counters"]


def lessons(trainer: Trainer) -> Iterator[list[TrainingBatch]]:
    """Many stories for fluency, then few among exact questions, then many again.

    A resumed run takes documents that were not seen, without replaying those that were.
    """
    begin, end = trainer.recipe.lean
    while True:
        lean = begin <= trainer.step < end
        stories = FEW if lean else MANY
        for batches in steps(trainer.tokenizer, trainer.recipe.seed, trainer.step, stories):
            if lean != (begin <= trainer.step < end):
                break
            yield batches


def run(trainer: Trainer, checkpoint: Path) -> None:
    """Train until the recipe's end, from the checkpoint if there is one."""
    recipe = trainer.recipe
    if checkpoint.exists():
        trainer.resume(checkpoint)
    before, began, mean = trainer.minutes, time.monotonic(), 0.0
    for batches in lessons(trainer):
        if trainer.finished():
            break
        loss = trainer.learn(batches)
        trainer.minutes = before + (time.monotonic() - began) / 60
        mean = loss if mean == 0.0 else 0.95 * mean + 0.05 * loss
        if trainer.step % 20 == 0:
            rate = trainer.tokens / max(trainer.minutes, 1e-9) / 60
            log.info(
                "step %d loss %.4f rate %.2f %.1f min %.2f Mtok %.0f tok/s",
                trainer.step,
                mean,
                recipe.scale(trainer.step, trainer.minutes),
                trainer.minutes,
                trainer.tokens / 1e6,
                rate,
            )
        if trainer.step % recipe.every == 0:
            trainer.keep(checkpoint)
    trainer.keep(checkpoint)


def tokenizer_of(seed: int, count: int = 12000) -> Tokenizer:
    """The tokenizer of a seed; it sees documents of the corpus only, like the model."""
    texts = ("".join(text for text, _ in pieces(d)) for d in documents(seed, count))
    return train_tokenizer(texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    recipe = Recipe()
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--checkpoint", type=Path, help="file to resume from and to keep")
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument(
        "--minutes", type=float, default=recipe.minutes, help="end by then, decayed"
    )
    parser.add_argument("--decay", type=float, default=recipe.decay, help="share of the run")
    parser.add_argument("--rate", type=float, default=recipe.rate)
    parser.add_argument("--matrix-rate", type=float, default=recipe.matrix_rate)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default=recipe.optimizer)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--every", type=int, default=recipe.every, help="steps per checkpoint")
    parser.add_argument("--workers", type=int, default=recipe.workers, help="threads")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = vars(parse())
    out, checkpoint = options.pop("out"), options.pop("checkpoint")
    recipe = Recipe(**options)
    checkpoint = checkpoint or out.parent / f"{out.name}-checkpoint.pt"
    # Weights are only good with the tokenizer they were trained with.
    known = checkpoint.exists() and Tokenizer.from_file(str(out / "tokenizer.json"))
    run(Trainer(recipe, known or tokenizer_of(recipe.seed), out), checkpoint)


if __name__ == "__main__":
    main()
