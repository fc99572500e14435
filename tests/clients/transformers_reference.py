"""Log-likelihoods as transformers has them in float32, of the texts that stand on standard input.

    python transformers_reference.py MODEL < pairs.json

A pair is a context and what follows it; an empty context is the end-of-text token. It runs in the
server's environment, where torch is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def scored(model: Any, tokenizer: Any, context: str, following: str) -> tuple[float, bool]:
    """The sum over what follows, and whether each token of it is the likeliest there."""
    before = tokenizer(context, add_special_tokens=False).input_ids or [tokenizer.eos_token_id]
    whole = tokenizer(context + following, add_special_tokens=False).input_ids
    ids = torch.tensor(before + whole if not context else whole)
    with torch.inference_mode():
        likely = model(ids[None]).logits[0].double().log_softmax(-1)[len(before) - 1 : -1]
    target = ids[len(before) :]
    each = likely.gather(-1, target[:, None])
    return float(each.sum()), bool((likely.argmax(-1) == target).all())


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    pairs = json.load(sys.stdin)
    json.dump([scored(model, tokenizer, *pair) for pair in pairs], sys.stdout)


if __name__ == "__main__":
    main()
