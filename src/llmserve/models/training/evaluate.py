"""Measure following, recall and addition on prompts that no training document contains.

`python -m llmserve.models.training.evaluate --model FOLDER --out FOLDER` writes figures.json and
figures.md.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmserve.models import bundled_path
from llmserve.models.training.words import (
    COLOURS,
    HELD_NOUNS,
    LEFT,
    NAMES,
    RIGHT,
    article,
    held_sum,
    made_up,
    open_sum,
)

DEMO = (
    "Tell me a story about a lighthouse.",
    "Write a short story about a fox and a lantern.",
    "What colour is the red ball?",
    "The cat is blue. What colour is the cat?",
    "What is 17 + 25?",
    "Hello! Who are you?",
    "Count from 1 to 10",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class Question:
    """A prompt and the words that its answer must contain, in any order.

    An opening that only repeats the prompt does not count: the story itself must have the words.
    """

    prompt: str
    words: tuple[str, ...]

    def answered(self, answer: str) -> bool:
        answer = re.sub(r"^(Here|This) is a story about [^.]*\. ?", "", answer)
        return all(re.search(rf"\b{re.escape(w)}\b", answer, re.I) for w in self.words)


@dataclass(frozen=True)
class EvalFigure:
    task: str
    right: int
    n: int
    wrong: list[tuple[str, str]]


def story_of_two(rng: random.Random) -> Question:
    """Two nouns that are never in one document."""
    pair = [rng.choice(sorted(LEFT)), rng.choice(sorted(RIGHT))]
    rng.shuffle(pair)
    ask = rng.choice(("Tell me a story about {} and {}.", "Write a short story about {} and {}."))
    return Question(ask.format(*map(article, pair)), tuple(pair))


def story_of_unseen(rng: random.Random) -> Question:
    """A noun that is in no document."""
    noun = rng.choice(sorted(HELD_NOUNS))
    ask = rng.choice(("Tell me a story about {}.", "Write a short story about {}."))
    return Question(ask.format(article(noun)), (noun,))


def colour_of_one(rng: random.Random) -> Question:
    noun, colour = rng.choice(sorted(HELD_NOUNS)), rng.choice(COLOURS)
    return Question(f"The {noun} is {colour}. What colour is the {noun}?", (noun, colour))


def colour_of_two(rng: random.Random) -> Question:
    """The right one of two colours; the wrong one in the answer counts as wrong too."""
    left, right = rng.choice(sorted(LEFT)), rng.choice(sorted(RIGHT))
    first, second = rng.sample(COLOURS, 2)
    noun, colour = rng.choice(((left, first), (right, second)))
    told = f"The {left} is {first} and the {right} is {second}."
    return Question(f"{told} What colour is the {noun}?", (f"the {noun} is {colour}",))


def town_of_two(rng: random.Random) -> Question:
    """Names and places made up for the question."""
    people = [made_up(rng).capitalize(), rng.choice(NAMES)]
    towns = [made_up(rng).capitalize() for _ in people]
    index = rng.randrange(2)
    told = " ".join(f"{who} lives in {town}." for who, town in zip(people, towns, strict=True))
    return Question(f"{told} Where does {people[index]} live?", (f"in {towns[index]}",))


def sum_held(rng: random.Random) -> Question:
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        if held_sum(a, b):
            return Question(f"What is {a} + {b}?", (f"{a} + {b} = {a + b}",))


def sum_trained(rng: random.Random) -> Question:
    a, b = open_sum(rng)
    return Question(f"What is {a} + {b}?", (f"{a} + {b} = {a + b}",))


TASKS: dict[str, tuple[Callable[[random.Random], Question], int]] = {
    "story names both of two nouns never seen together": (story_of_two, 200),
    "story names a noun never seen": (story_of_unseen, 100),
    "colour of one object, noun never seen": (colour_of_one, 200),
    "colour of one of two objects, nouns never seen together": (colour_of_two, 200),
    "made-up town of one of two people": (town_of_two, 200),
    "addition below 100, pairs never seen": (sum_held, 500),
    "addition below 100, pairs from the corpus": (sum_trained, 200),
}


class Answerer:
    """Greedy answers in float32, in batches; padding is on the left, as generation needs it."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, prompts: list[str], limit: int = 200) -> Iterator[str]:
        chats = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
            )
            for p in prompts
        ]
        for start in range(0, len(chats), 50):
            rows = self.tokenizer(chats[start : start + 50], return_tensors="pt", padding=True)
            out = self.model.generate(**rows, max_new_tokens=limit, do_sample=False)
            new = out[:, rows["input_ids"].shape[1] :]
            yield from self.tokenizer.batch_decode(new, skip_special_tokens=True)


def measure(
    answer: Answerer, share: float, tasks: Iterable[str] = TASKS, seed: int = 7
) -> list[EvalFigure]:
    """Each task on `share` of its questions, the same for every model of one seed."""
    figures = []
    for task in tasks:
        make, full = TASKS[task]
        rng = random.Random(f"{seed}/{task}")
        questions = [make(rng) for _ in range(max(1, round(full * share)))]
        answers = list(answer([q.prompt for q in questions]))
        both = list(zip(questions, answers, strict=True))
        wrong = [(q.prompt, a) for q, a in both if not q.answered(a)]
        figures.append(EvalFigure(task, len(both) - len(wrong), len(both), wrong[:5]))
    return figures


def markdown(figures: list[EvalFigure], demo: list[tuple[str, str]]) -> str:
    lines = ["| task | right | n | share |", "|---|---|---|---|"]
    lines += [f"| {f.task} | {f.right} | {f.n} | {100 * f.right / f.n:.1f} % |" for f in figures]
    lines += [f"\n> **{prompt}**\n>\n> {answer}" for prompt, answer in demo]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=bundled_path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the questions, for a quick look"
    )
    options = parser.parse_args()
    answer = Answerer(options.model)
    figures = measure(answer, options.share)
    demo = [(p, a.replace("\n", "\n> ")) for p, a in zip(DEMO, answer(list(DEMO)), strict=True)]
    options.out.mkdir(parents=True, exist_ok=True)
    written = {"figures": [asdict(f) for f in figures], "demo": demo}
    (options.out / "figures.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (options.out / "figures.md").write_text(markdown(figures, demo), encoding="utf-8")


if __name__ == "__main__":
    main()
