"""Tiny random models of real architectures, and a runner over one without its process."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llmserve.core.knobs import Knobs
from llmserve.core.types import SamplingParams
from llmserve.engines.process.messages import Abort, Delta, Retune, Stepped, SubmitRequest
from llmserve.engines.torch.step_loop import StepLoop

VOCAB = 320
EOS = 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # far from uniform logits, so that replies vary
}


def save_tokenizer(folder: Path) -> None:
    """Byte-level BPE over all bytes, ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the lighthouse keeper, zażółć gęślą jaźń 🙂 漢字 漢字"] * 9, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_model(folder: Path, config: Any) -> Path:
    """A randomly initialised causal model of `config`, always the same one, with a tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.generation_config.eos_token_id = EOS
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def reference(folder: Path) -> Any:
    """The same model as transformers runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generate(network: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """`model.generate`, greedy, alone; the new tokens."""
    ids = torch.tensor([list(prompt)], device=network.device)
    out = network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@cache
def greedy(folder: Path, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """What `generate` says, computed once."""
    return generate(_loaded(folder), prompt, max_tokens)


@cache
def _loaded(folder: Path) -> Any:
    return reference(folder)


def words(count: int, seed: int) -> tuple[int, ...]:
    """Tokens of a prompt."""
    dice = random.Random(seed)
    return tuple(dice.randrange(3, VOCAB) for _ in range(count))


@dataclass
class Driven:
    """A runner, and what it has said so far."""

    runner: StepLoop
    steps: list[Stepped] = field(default_factory=list)
    deltas: dict[str, list[Delta]] = field(default_factory=dict)

    def submit(self, request_id: str, prompt: Sequence[int], **sampling: Any) -> None:
        self.deltas[request_id] = []
        message = SubmitRequest(request_id, tuple(prompt), SamplingParams(**sampling))
        answer = self.runner.handle(message)
        assert answer is None or isinstance(answer, Stepped)
        if answer is not None:
            self._keep(answer)

    def retune(self, **changes: object) -> None:
        self.runner.handle(Retune(0, Knobs().changed(changes)))

    def abort(self, request_id: str) -> None:
        self.runner.handle(Abort(request_id))

    def step(self) -> bool:
        """One step and the invariants after it; False when there was nothing to do."""
        stepped = self.runner.step()
        self.runner.check()
        if stepped is None:
            return False
        self.steps.append(stepped)
        self._keep(stepped)
        return True

    def finish(self) -> None:
        while self.step():
            assert len(self.steps) < 20_000, "it does not end"

    def tokens(self, request_id: str) -> list[int]:
        return [token for delta in self.deltas[request_id] for token in delta.token_ids]

    def text(self, request_id: str) -> str:
        return "".join(delta.text for delta in self.deltas[request_id])

    def end(self, request_id: str) -> Delta:
        last = self.deltas[request_id][-1]
        assert last.finish_reason is not None, "not finished"
        return last

    def _keep(self, stepped: Stepped) -> None:
        for delta in stepped.deltas:
            self.deltas[delta.id].append(delta)


Drive = Callable[..., Driven]


def save_sliding(folder: Path) -> Path:
    """A model with a sliding window, which the engine refuses."""
    from transformers import MistralConfig

    return save_model(folder, MistralConfig(**SHAPE, sliding_window=64))
