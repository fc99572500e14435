"""A tiny network for the fused step, as transformers runs it and taken apart, and sequences in it.

Keys and values are kept in bfloat16 and all else is float32, so the oracle is transformers' own
code in float32 with keys and values rounded: what is left is the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmserve.engines.torch.cpu_kernels.kernel import FusedRows
from llmserve.engines.torch.kv.store import Geometry, KvStore
from llmserve.engines.torch.model.weights import Weights, take_apart

MOST_ROWS, MOST_TOKENS, DIM = 128, 4096, 32
SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": DIM, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": MOST_TOKENS,
    "initializer_range": 0.1, "attn_implementation": "kept_in_bfloat16",
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped queries": ("LlamaConfig", {}),
    "a head for each, an odd vocabulary": (
        "LlamaConfig", {"num_key_value_heads": 4, "vocab_size": 323, "rms_norm_eps": 1e-3},
    ),
    "seven to one": (
        "LlamaConfig", {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 1120},
    ),
    **{
        f"{heads} to one": (
            "LlamaConfig",
            {"num_attention_heads": heads, "num_key_value_heads": 1, "hidden_size": 32 * heads},
        )
        for heads in (3, 5, 6, 8, 12)
    },
    "biases, tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "norms of heads": ("Qwen3Config", {}),
}  # fmt: skip


class Model:
    """One network, as transformers runs it and taken apart."""

    def __init__(self, kind: str) -> None:
        import transformers
        from transformers import AttentionInterface, AutoModelForCausalLM

        AttentionInterface.register("kept_in_bfloat16", kept_in_bfloat16)
        name, changes = KINDS[kind]
        config = getattr(transformers, name)(**SHAPE | changes)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            for told, one in self.network.named_parameters():
                if told.endswith(("bias", "norm.weight")):  # or they would be 0 and 1
                    one.data.normal_(0.7, 0.3)
        self.reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        self.reference.load_state_dict(self.network.state_dict())
        self.vocabulary: int = config.vocab_size
        cpu = torch.device("cpu")
        self.geometry = Geometry(
            config.num_hidden_layers, config.num_key_value_heads, DIM, DIM, torch.bfloat16, cpu
        )
        self.weights: Weights = take_apart(self.network, self.geometry, MOST_TOKENS)

    @torch.inference_mode()
    def expected(self, ids: list[int]) -> Tensor:
        """Logits behind each of the tokens."""
        logits: Tensor = self.reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    def ids(self, seed: int, count: int) -> list[int]:
        return [3 + (seed * 31 + i * i * 7 + 5 * i) % (self.vocabulary - 3) for i in range(count)]


def kept_in_bfloat16(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    key, value = (one.bfloat16().float() for one in (key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **rest)


class Drive:
    """Sequences in slots, taken on by steps of a Rows."""

    def __init__(self, model: Model, rows: FusedRows) -> None:
        self.model, self.rows = model, rows
        self.kv = KvStore(model.geometry)
        self.ids: dict[str, list[int]] = {}

    def step(self, *stretches: tuple[str, int, int]) -> Tensor:
        """Logits of all rows of a step: of each owner, the tokens from one place to another."""
        told = [(owner, at) for owner, start, end in stretches for at in range(start, end)]
        for owner, start, end in stretches:
            self.kv.reserve(owner, end, start)
        return self.rows(
            [self.ids[owner][at] for owner, at in told],
            [at for _, at in told],
            [self.kv.place(owner) for owner, _ in told],
            [*range(len(told))],
        ).clone()

    def feed(self, owner: str, start: int, end: int) -> Tensor:
        """The same by steps of as many rows as go; of the last one."""
        for at in range(start, end, MOST_ROWS):
            got = self.step((owner, at, min(end, at + MOST_ROWS)))
        return got

    def add(self, owner: str, count: int) -> None:
        self.ids[owner] = self.model.ids(len(self.ids), count)
