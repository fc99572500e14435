"""Options of vLLM's own application, which it would look at with the first request only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmserve.engines.vllm.startup import OptionRefused, check_api

PLUGIN = """
from vllm.tool_parsers import ToolParser, ToolParserManager

@ToolParserManager.register_module("llmserve_test_parser")
class Mine(ToolParser):
    pass
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tool_call_parser": "hermez"}, "no 'hermez'; did you mean hermes"),
        ({"tool_call_parser": "?"}, "no '[?]'; there are .*hermes"),
        ({"enable_auto_tool_choice": True}, "needs a tool_call_parser: one of .*hermes"),
        ({"chat_template": "no/such.jinja"}, "no/such.jinja.*doesn't exist"),
        ({"tool_parser_plugin": "no/plugin.py", "tool_call_parser": "mine"}, "no/plugin.py does"),
    ],
)
def test_an_option_of_the_api_that_cannot_be_is_refused_at_the_start(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionRefused, match=says):
        check_api(options)


def test_a_parser_of_the_users_own_is_known_once_its_plugin_is_imported(tmp_path: Path) -> None:
    plugin = tmp_path / "llmserve_test_plugin.py"
    plugin.write_text(PLUGIN)
    check_api({"tool_parser_plugin": str(plugin), "tool_call_parser": "llmserve_test_parser"})
