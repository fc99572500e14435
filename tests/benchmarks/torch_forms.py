"""What holding replies to a form costs in a step: 8 rows with a JSON schema and without.

    PYTHONPATH=tests python -m benchmarks.torch_forms [--rows 8] [--steps 60] [--blocks 5]

The bundled model, in this process, drawing at temperature 1; the two kinds of steps alternate.
`in the sampler` is the time of masking alone, which is what the form adds; the step as a whole is
told too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

from benchmarks.torch_profile import clocked, opened
from llmserve.core.types import SamplingParams, Structured
from llmserve.models import bundled_path

SCHEMA = {
    "type": "object",
    "properties": {"texts": {
        "type": "array", "minItems": 400, "items": {"type": "string", "maxLength": 40},
    }},
    "required": ["texts"], "additionalProperties": False,
}  # fmt: skip
"""Long enough that no reply ends while it is measured."""


def main(options: argparse.Namespace) -> None:
    import torch

    from llmserve.engines.torch.sampling import guided_decoding
    from llmserve.engines.torch.sampling import sampler as sampling

    torch.set_num_threads(options.threads)
    limit = options.steps * options.blocks + 20
    form = Structured("json", json.dumps(SCHEMA))
    model = {"model": str(options.model or bundled_path())}
    runners = {
        "without": opened(model, options.rows, _sampling(limit, None)),
        "with a schema": opened(model, options.rows, _sampling(limit, form)),
    }
    steps: dict[str, list[float]] = defaultdict(list)
    masks: dict[str, float] = defaultdict(float)
    with (
        clocked(masks, "masking", sampling, "forbidden"),
        clocked(masks, "following", guided_decoding.Matcher, "push"),
    ):
        for _ in range(options.blocks):
            for name, running in runners.items():
                for _ in range(options.steps):
                    start = time.perf_counter()
                    stepped = running.step()
                    steps[name].append(time.perf_counter() - start)
                    assert len(stepped.deltas) == options.rows
    counted = options.blocks * options.steps
    for name, took in steps.items():
        print(f"{name:14} {statistics.median(took) * 1e3:6.2f} ms a step of {options.rows} rows")
    per_step = {name: seconds / counted * 1e3 for name, seconds in masks.items()}
    told = ", ".join(f"{name} {ms:.3f} ms" for name, ms in per_step.items())
    print(f"of it in a step: {told}; together {sum(per_step.values()):.3f} ms")


def _sampling(limit: int, form: Structured | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=limit, temperature=1.0, ignore_eos=True, structured_outputs=form
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; the bundled model by default")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
