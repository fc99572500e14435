from __future__ import annotations

from llmserve.core.knobs import SPECS
from llmserve.entrypoints.magics.completion import candidates
from llmserve.entrypoints.magics.parsers import build_parsers
from support.shells import Shell


def test_subcommands_complete_and_nothing_else_mixes_in(ip: Shell) -> None:
    assert ip.completions("%llmserve sta") == ["start", "status"]
    found = sorted(ip.completions("%llmserve help re"))
    assert found == ["requests", "restart", "resume"]
    assert "dashboard" in ip.completions("%llmserve ")


def test_options_and_their_values_complete(ip: Shell) -> None:
    assert ip.completions("%llmserve start --en") == ["--engine"]
    assert ip.completions("%llmserve start --engine s") == ["simulator"]
    assert ip.completions("%llmserve start --engine=to") == ["torch"]
    assert ip.completions("%llmserve bench --dur") == ["--duration"]


def test_knob_names_and_values_complete(ip: Shell) -> None:
    assert ip.completions("%llmserve set max_num_s") == ["max_num_seqs="]
    assert ip.completions("%llmserve set policy=") == list(SPECS["policy"].choices)
    assert ip.completions("%llmserve set max_num_seqs=4 policy=pri") == ["priority"]
    assert ip.completions("%llmserve start batching=st") == ["static"]
    assert ip.completions("%llmserve set ") == [*(f"{name}=" for name in SPECS), "--evict"]
    assert ip.completions("%llmserve set queue_timeout_s=") == ["120"]


def test_options_of_the_chosen_engine_and_of_the_server_complete(ip: Shell) -> None:
    assert ip.completions("%llmserve start --engine simulator pre") == [
        "prefill_ms=", "prefill_token_ms=",
    ]  # fmt: skip
    for line in ("start pre", "start --engine steam pre", "set pre"):
        assert "prefill_ms=" not in ip.completions(f"%llmserve {line}")
    assert ip.completions("%llmserve start dty") == ["dtype="]
    assert ip.completions("%llmserve start dtype=fl") == ["float32", "float16"]
    assert ip.completions("%llmserve start --engine torch enforce_eager=") == ["True", "False"]
    assert ip.completions("%llmserve start --engine simulator decode_ms=") == ["10"]
    assert candidates("%llmserve start revision=", build_parsers()) == []
    assert ip.completions("%llmserve start gc_") == ["gc_threshold="]
    assert candidates("%llmserve set dtype=", build_parsers()) == []
    assert "chat_template=" in ip.completions("%llmserve start --engine vllm chat")


def test_the_cell_magics_options_complete_on_its_first_line(ip: Shell) -> None:
    assert ip.completions("%%llmserve --max-t") == ["--max-tokens"]
    assert ip.completions("%%llmserve --seed 1 --temp") == ["--temperature"]
    assert "--max-tokens" not in ip.completions("%%llmserve\n--max-t")


def test_magics_below_other_code_and_on_the_right_of_a_name_complete(ip: Shell) -> None:
    assert ip.completions("x = 1\n%llmserve sto") == ["stop"]
    assert ip.completions("frame = %llmserve req") == ["requests"]


def test_other_lines_are_left_to_ipython(ip: Shell) -> None:
    ip.ok("llmserve_lantern = 1")
    assert "llmserve_lantern" in ip.completions("llmserve_lan")
    assert ip.completions("%llmserveset max_num_s") != ["max_num_seqs="]


def test_unloading_ends_completion(ip: Shell) -> None:
    ip.ok("%unload_ext llmserve")
    assert "start" not in ip.completions("%llmserve sta")
