"""The names of vLLM's options, read from its source: right where vLLM is, quick where it is not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from llmserve.engines.vllm.option_names import option_names
from llmserve.engines.vllm.options import KNOBS, OURS


def test_vllms_options_are_known_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm" / "engine").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "vllm" / "engine" / "arg_utils.py").write_text(
        "class EngineArgs:\n    dtype: str = 'auto'\n    max_num_seqs: int = 8\n    other = 1\n"
        "class AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n"
        "class Unlike:\n    not_one: int = 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    names = option_names()
    assert {"dtype", "enable_log_requests", "model", "chat_template", *OURS} <= set(names)
    assert not {"not_one", "other", *KNOBS} & set(names)


@pytest.mark.vllm
def test_the_names_read_from_vllms_source_are_the_fields_of_its_class() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    assert known - KNOBS.keys() <= set(option_names())


def test_without_vllm_its_options_of_ours_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.engines.vllm.option_names.find_spec", lambda _: None)
    assert {"model", *OURS} <= set(option_names())
