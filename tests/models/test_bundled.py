"""The model in the package loads without a network and does what its card says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmserve.models import bundled_path
from llmserve.models.training import evaluate
from llmserve.models.training.export import CHAT_TEMPLATE, llama_config
from llmserve.models.training.network import Llama


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundled_path()


@pytest.fixture(scope="module")
def answer(folder: Path) -> Iterator[evaluate.Answerer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other at every product: on a busy machine, long
    yield evaluate.Answerer(folder)
    torch.set_num_threads(threads)


def test_the_folder_is_small_and_complete(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20


def test_the_chat_template_is_chatml_and_ends_with_the_stop_token(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == "<|im_end|>"
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config == llama_config(len(tokenizer))


def test_the_training_network_and_transformers_agree(answer: evaluate.Answerer) -> None:
    """Same weights, same loss: otherwise what was trained is not what is served."""
    tokens = torch.arange(40)[None] % 30 + 200
    network = Llama(json.loads((bundled_path() / "config.json").read_text()))
    weights = {k: v for k, v in answer.model.state_dict().items() if k != "lm_head.weight"}
    network.load_state_dict(weights)
    wanted = torch.cat((tokens[:, 1:], torch.tensor([[-1]])), dim=1)
    with torch.no_grad():
        ours = network(tokens, wanted) / 39
        theirs = answer.model(tokens, labels=tokens).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


def test_a_story_has_the_things_it_was_asked_for(answer: evaluate.Answerer) -> None:
    two, one = "Tell me a story about a dragon and an umbrella.", "Tell me a story about a cow."
    of_two, of_one = answer([two, one], limit=120)
    assert evaluate.Question(two, ("dragon", "umbrella")).answered(of_two), of_two
    assert evaluate.Question(one, ("cow",)).answered(of_one), of_one
    assert "umbrella" not in of_one


def test_an_opening_that_repeats_the_prompt_does_not_count() -> None:
    asked = evaluate.Question("", ("fox", "lantern"))
    assert not asked.answered("Here is a story about a fox and a lantern. A fox slept.")
    assert asked.answered("Here is a story about a fox and a lantern. A fox had a lantern.")


def test_answers_come_from_the_prompt(answer: evaluate.Answerer) -> None:
    told = "The cat is {} and the bag is {}. What colour is the cat?"
    first, second = answer([told.format("blue", "red"), told.format("red", "blue")], limit=30)
    assert first == "The cat is blue."
    assert second == "The cat is red."


def test_it_says_what_it_is(answer: evaluate.Answerer) -> None:
    (said,) = answer(["Hello! Who are you?"], limit=60)
    assert "toy storyteller" in said
    assert "llmserve" in said


@pytest.mark.parametrize("task", evaluate.TASKS)
def test_the_card_does_not_claim_more_than_a_sample_shows(
    answer: evaluate.Answerer, folder: Path, task: str
) -> None:
    """Within the noise of a small sample: a swapped or broken model is far outside it."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith(f"| {task} |"))
    right, n = (int(cell) for cell in row.split("|")[2:4])
    assert evaluate.TASKS[task][1] == n
    (figure,) = evaluate.measure(answer, share=20 / n, tasks=[task])
    assert figure.n == 20
    assert figure.right / figure.n >= right / n - 0.25
