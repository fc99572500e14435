"""How far int8 weights move a model: logits of a text that the full model drew itself.

    PYTHONPATH=tests python -m benchmarks.torch_int8 [--model FOLDER] [--dtype auto]
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.torch_profile import some_prompts
from llmserve.models import bundled_path

LENGTH = 200


def main(options: argparse.Namespace) -> None:
    import torch

    from llmserve.engines.torch.model.select_forward import load
    from llmserve.engines.torch.options import parse

    torch.set_num_threads(1)
    told = {"model": options.model or str(bundled_path()), "dtype": options.dtype, "threads": 1}
    full, eighth = load(parse(told)), load(parse(told | {"quantization": "int8"}))
    ids = some_prompts(1, full.vocab_size, 8)[0]
    generator = torch.Generator().manual_seed(1)
    while len(ids) < LENGTH:  # drawn, not greedy: greedy text goes round in circles
        mass = torch.softmax(logits(full, ids)[-1], -1)
        ids.append(int(torch.multinomial(mass, 1, generator=generator)))
    its, mine = logits(full, ids), logits(eighth, ids)
    off = (mine - its).norm(dim=-1) / its.norm(dim=-1)
    agree = (mine.argmax(-1) == its.argmax(-1)).float().mean()
    apart = (mine.log_softmax(-1).exp() - its.log_softmax(-1).exp()).abs().sum(-1).mean() / 2
    print(
        f"{eighth.path}\nover {LENGTH} tokens: logits {off.mean():.1%} off on average, "
        f"{off.max():.1%} at most, by {(mine - its).abs().max():.2f} at most; the likeliest "
        f"token is the same in {agree:.1%}; distributions differ by {apart:.1%} of their mass"
    )


def logits(model: Any, ids: list[int]) -> Any:
    from llmserve.engines.torch.kv.store import KvStore
    from llmserve.engines.torch.model.batch_layout import BatchPart, arrange

    kv = KvStore(model.geometry)
    kv.reserve("text", len(ids), 0)
    batch = arrange([BatchPart("text", 0, len(ids))], kv)
    return model.forward(batch, ids, [*range(len(ids))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the bundled model by default")
    parser.add_argument("--dtype", default="auto")
    main(parser.parse_args())
