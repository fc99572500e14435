"""Where vLLM's own application truly answers otherwise than our routes, and why that may stay.

Strict: a test named here that passes is a failure, so that the list stays true.
"""

from __future__ import annotations

LENIENT = "vLLM reads a value of another type where it has a meaning"
DROPPED = "vLLM ignores fields it does not know, and has dropped this one"
SERVED = "vLLM can do this"
CUT = "vLLM cuts a call at max_tokens, which a weak model fills with blanks"
ENDLESS = "vLLM looks for no end of a schema, and fills max_tokens with its beginning"
NAMES = "vLLM takes functions of any name, and several of one"

DIFFERENCES: dict[str, str] = {
    '[vllm-{"messages": [{"role": "narrator"': "vLLM leaves roles to the chat template",
    '[vllm-{"messages": [{"role": "user"}]}]': "vLLM takes a message without content",
    '[vllm-{"max_tokens": "12"}]': LENIENT,
    '[vllm-{"max_tokens": true}]': LENIENT,
    '[vllm-{"stream": "yes"}]': LENIENT,
    '[vllm-{"logprobs": true}]': LENIENT,
    '[vllm-{"guided_json"': DROPPED,
    '[vllm-{"guided_regex"': DROPPED,
    '[vllm-{"guided_choice"': DROPPED,
    '[vllm-{"guided_grammar"': DROPPED,
    '[vllm-{"best_of": 2}]': DROPPED,
    '[vllm-{"logit_bias": {"3": 101}}]': "vLLM cuts a bias to within -100 and 100",
    '[vllm-{"echo": true}]': SERVED,
    "test_a_schema_that_nothing_fits_is_400_by_its_field[vllm-endless": ENDLESS,
    "test_a_schema_that_nothing_fits_is_400_by_its_field[vllm-anyOf nothing": ENDLESS,
    "test_a_schema_that_nothing_fits_is_400_by_its_field[vllm-elsewhere":
        "vLLM takes anything for a schema that stands elsewhere",
    "test_required_is_a_call_that_fits[vllm]": CUT,
    "test_a_call_ends_in_time_however_much_the_model_would_say[vllm]": CUT,
    "test_a_streamed_call_comes_in_pieces_and_is_the_whole_one[vllm-required]": CUT,
    "test_a_call_fits_any_schema[vllm]": CUT,
    "test_a_streamed_call_comes_in_pieces_and_is_the_whole_one[vllm-named]":
        "vLLM ends a call that was named with stop, as OpenAI once did",
    "test_a_named_call_ends_as_all_calls_do[vllm]":
        "vLLM ends a call that was named with stop, as OpenAI once did",
    "test_what_is_wrong_with_tools_is_400_by_its_field[vllm-two of one name]": NAMES,
    "test_what_is_wrong_with_tools_is_400_by_its_field[vllm-no name]": NAMES,
    "test_too_long_a_prompt_is_told_by_its_code[vllm]":
        "vLLM cuts max_tokens to the room that the prompt leaves",
    "test_fields_that_ask_for_nothing_are_no_error[vllm-neutral0]":
        "vLLM refuses an empty list of tools, as OpenAI does",
    "test_detokenize_refuses_ids_outside_the_vocabulary[vllm]":
        "vLLM takes ids beyond the vocabulary for no text",
    "test_each_of_several_prompts_gets_its_choices_in_order[vllm]":
        "vLLM refuses n > 1 at temperature 0, for all would be the same",
}  # fmt: skip
"""What a test's name holds, and the reason."""


def difference(name: str) -> str | None:
    return next((why for part, why in DIFFERENCES.items() if part in name), None)
