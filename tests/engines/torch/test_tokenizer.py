"""The kernel's tokenizer gives the very ids that transformers gives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmserve.engines.tokenizer import ChatOptions
from llmserve.engines.torch.text.tokenizer import (
    FolderTokenizer,
    TransformersTokenizer,
    open_tokenizer,
)
from llmserve.models import bundled_path

CHAT = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "Zażółć?  "},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "🙂\n"},
]
TEMPLATES = {
    "trimming": """
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content | trim }}
    {%- endif %}
    {% for message in messages %}
        {% if loop.first %}{% continue %}{% endif %}
        {{ bos_token }}[{{ message['role'] }}] {{ message['content'] | tojson }}
    {% endfor %}
    {% if tools %}never{% endif %}
    {% if add_generation_prompt %}>>{% endif %}
    """,
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}|{% endif %}{% endfor %}{{ eos_token }}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
        "{{ {'b': m.content, 'a': 'é<'} | tojson(indent=1) }}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') }}"
    ),
}


def auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def variant(folder: Path, into: Path, template: str, **settings: Any) -> Path:
    """The tokenizer of `folder` with another template and other settings."""
    (into / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    before = json.loads((folder / "tokenizer_config.json").read_text())
    before.pop("chat_template", None)
    (into / "tokenizer_config.json").write_text(json.dumps(before | settings))
    (into / "chat_template.jinja").write_text(template)
    return into


LONG = "Zażółć, the lighthouse keeper! <|im_end|>\n" * 4000


def test_a_long_texts_ids_are_those_of_a_short_one(llama: Path) -> None:
    ours, theirs = open_tokenizer(llama), auto(llama)
    ids = ours.encode(LONG)
    assert ids == theirs(LONG)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    told = [{"role": "user", "content": LONG}]
    spelled = ChatOptions(allow_special_tokens=True)
    assert ours.chat(told, spelled) == theirs.apply_chat_template(
        told, add_generation_prompt=True, return_dict=False
    )


@pytest.fixture
def no_turns() -> Iterator[None]:
    """A thread keeps the interpreter until it lets go of it by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_turns")
@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_others_go_on_while_a_long_text_is_read(llama: Path, kind: str) -> None:
    ours, turns, over = open_tokenizer(llama), [0], threading.Event()
    ids = ours.encode(LONG)
    works: dict[str, Callable[[], object]] = {
        "text": lambda: ours.encode(LONG),
        "chat": lambda: ours.chat([{"role": "user", "content": LONG}]),
        "ids": lambda: ours.decode(ids),
    }

    def other() -> None:
        while not over.is_set():
            turns[0] += 1
            time.sleep(0)

    def had_a_turn() -> bool:
        before = turns[0]
        works[kind]()
        return turns[0] > before

    beside = threading.Thread(target=other)
    beside.start()
    try:
        assert any(had_a_turn() for _ in range(20))
    finally:
        over.set()
        beside.join()


def test_a_plain_folder_needs_no_transformers(llama: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from llmserve.engines.torch.text.tokenizer import open_tokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    open_tokenizer(Path(folder)).chat([{'role': 'user', 'content': 'x'}])\n"
        "assert not {'transformers', 'torch', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, llama, bundled_path()], check=True)


def test_chat_is_that_of_transformers(llama: Path) -> None:
    for folder in (llama, bundled_path()):
        mine, theirs = open_tokenizer(folder), auto(folder)
        assert isinstance(mine, FolderTokenizer)
        expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
        assert mine.chat(CHAT) == expected
        for text in ("Hello  world", " é🙂", "", "<|im_end|> inside", "12345"):
            assert mine.encode(text) == theirs(text)["input_ids"]
            ids = mine.encode(text)
            assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(llama: Path, tmp_path: Path, name: str) -> None:
    folder = variant(llama, tmp_path, TEMPLATES[name], bos_token="<|endoftext|>")
    expected = auto(folder).apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False
    )
    assert open_tokenizer(folder).chat(CHAT) == expected


def test_a_template_that_refuses_is_a_value_error(llama: Path, tmp_path: Path) -> None:
    folder = variant(llama, tmp_path, "{{ raise_exception('roles must alternate') }}")
    for tokenizer in (open_tokenizer(folder), TransformersTokenizer(folder, False)):
        with pytest.raises(ValueError, match="roles must alternate"):
            tokenizer.chat(CHAT)


def test_a_template_cannot_reach_out_of_its_sandbox(llama: Path, tmp_path: Path) -> None:
    folder = variant(llama, tmp_path, "{{ messages.__class__.__mro__ }}{{ messages.clear() }}")
    with pytest.raises(ValueError, match="refuses"):
        open_tokenizer(folder).chat(CHAT)


def test_a_model_without_a_template_says_so(llama: Path, tmp_path: Path) -> None:
    folder = variant(llama, tmp_path, "")
    (folder / "chat_template.jinja").unlink()
    for tokenizer in (open_tokenizer(folder), TransformersTokenizer(folder, False)):
        assert not tokenizer.has_chat
        with pytest.raises(ValueError, match="chat"):
            tokenizer.chat(CHAT)


def test_a_class_that_bends_its_file_is_left_to_transformers(llama: Path, tmp_path: Path) -> None:
    folder = variant(llama, tmp_path, TEMPLATES["generation"], tokenizer_class="GPT2Tokenizer")
    mine, theirs = open_tokenizer(folder), auto(folder)
    assert isinstance(mine, TransformersTokenizer)
    assert type(mine.backend).__name__ == "Tokenizer"
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert mine.chat(CHAT) == expected
    assert mine.encode("two words") == theirs("two words")["input_ids"]
