"""Where vLLM's own application truly answers otherwise than our routes, and why that may stay.

Strict: a test named here that passes is a failure, so that the list stays true.
"""

from __future__ import annotations

DROPPED = "vLLM ignores fields it does not know, and has dropped this one"
NOWHERE = "vLLM says what a part may not be, and not where it is"
SERVED = "vLLM can do this"
SPELLED = "vLLM renders conversations itself: what spells a special token is one"
IGNORED_TOOLS = "vLLM ignores tools that it has no server for"
COMPLETED = "vLLM ends the stream of a reply that was cut off as one that is completed"
CUT = "vLLM cuts a call at max_tokens, which a weak model fills with blanks"
ENDLESS = "vLLM looks for no end of a schema, and fills max_tokens with its beginning"
NAMES = "vLLM takes functions of any name, and several of one"

BY_CHANCE = frozenset({CUT})
"""Reasons that hold for most of what is drawn: such a test may pass."""

DIFFERENCES: dict[str, str] = {
    '[vllm-{"messages": [{"role": "narrator"': "vLLM leaves roles to the chat template",
    '[vllm-{"messages": [{"role": "user", "content": [{"typ': NOWHERE,
    'names_the_field[vllm-{"messages": [{"role": "user", "content": "Tell ': NOWHERE,
    '[vllm-{"messages": [{"role": "user"}]}]': "vLLM takes a message without content",
    '[vllm-{"echo": true}]': SERVED,
    "test_a_prompt_alone_costs_no_reply[vllm]":
        "vLLM generates a token where none is asked for, hides it, and counts it",
    "test_a_stop_string_cuts_the_bytes_too[vllm":
        "vLLM's logprobs have the bytes that a stop string took from the text",
    "test_special_tokens_may_be_shown[vllm]":
        "vLLM's text_offset counts the names of special tokens that the text has not",
    "test_joined_bytes_of_a_chat_are_its_reply[vllm":
        "vLLM decodes each token: half a character has no bytes, the end token those of its name",
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
    "test_each_of_several_prompts_gets_its_choices_in_order[vllm]":
        "vLLM refuses n > 1 at temperature 0, for all would be the same",
    "test_that_nothing_is_stored_is_said[vllm]": "vLLM does not say whether a response is stored",
    "test_events_come_in_openais_order_and_are_counted[vllm]": COMPLETED,
    "test_the_official_client_follows_a_stream[vllm]": COMPLETED,
    '[vllm-{"previous_response_id": "resp_1"}]': "vLLM looks for it, and answers 404",
    '[vllm-{"truncation": "auto"}]': "vLLM cuts the input",
    '[vllm-{"reasoning": {"effort": "high"}}]': "vLLM leaves it to the chat template",
    '[vllm-{"text": {"verbosity": "low"}}]': DROPPED,
    '[vllm-{"top_logprobs": 99}]': "vLLM reads it where log-probabilities are included",
    '[vllm-{"input": [{"role": "user", "content": [{"type": "input_imag]':
        "vLLM reads images, and names no field where its model does not",
    "test_a_users_text_ends_no_turn[vllm]": SPELLED,
    "test_parts_of_a_message_make_no_special_token_together[vllm]": SPELLED,
    "test_tools_and_what_they_say_end_no_turn[vllm]": SPELLED,
    "test_a_template_in_a_request_is_refused_by_name[vllm]":
        "vLLM refuses it, and names no field",
    "test_usage_has_the_details_that_clients_look_for[vllm]":
        "vLLM says of a reply's tokens only how many there are",
    '[vllm-{"tools": [{"type": "web_search"}]}]': IGNORED_TOOLS,
    '[vllm-{"tools": [{"type": "file_search"': IGNORED_TOOLS,
    '[vllm-{"tools": [{"type": "mcp"': IGNORED_TOOLS,
    "test_tokens_of_a_chat_with_tools_are_those_that_it_is_asked_with[vllm]":
        "vLLM shows the model no tools where its template shows none",
}  # fmt: skip
"""What a test's name holds, and the reason."""


def difference(name: str) -> str | None:
    return next((why for part, why in DIFFERENCES.items() if part in name), None)
