"""Where vLLM's own application truly answers otherwise than our routes, and why that may stay.

Strict: a test named here that passes is a failure, so that the list stays true.
"""

from __future__ import annotations

LENIENT = "vLLM reads a value of another type where it has a meaning"
DROPPED = "vLLM ignores fields it does not know, and has dropped this one"
SERVED = "vLLM can do this"
SPELLED = "vLLM renders conversations itself: what spells a special token is one"
IGNORED_TOOLS = "vLLM ignores tools that it has no server for"
COMPLETED = "vLLM ends the stream of a reply that was cut off as one that is completed"

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
    "test_too_long_a_prompt_is_told_by_its_code[vllm]":
        "vLLM cuts max_tokens to the room that the prompt leaves",
    "test_fields_that_ask_for_nothing_are_no_error[vllm-neutral0]":
        "vLLM refuses an empty list of tools, as OpenAI does",
    "test_detokenize_refuses_ids_outside_the_vocabulary[vllm]":
        "vLLM takes ids beyond the vocabulary for no text",
    "test_each_of_several_prompts_gets_its_choices_in_order[vllm]":
        "vLLM refuses n > 1 at temperature 0, for all would be the same",
    "test_that_nothing_is_stored_is_said[vllm]": "vLLM does not say whether a response is stored",
    "test_events_come_in_openais_order_and_are_counted[vllm]": COMPLETED,
    "test_the_official_client_follows_a_stream[vllm]": COMPLETED,
    '[vllm-{"previous_response_id": "resp_1"}]': "vLLM looks for it, and answers 404",
    '[vllm-{"conversation": "conv_1"}]': DROPPED,
    '[vllm-{"truncation": "auto"}]': "vLLM cuts the input",
    '[vllm-{"reasoning": {"effort": "high"}}]': "vLLM leaves it to the chat template",
    '[vllm-{"text": {"verbosity": "low"}}]': DROPPED,
    '[vllm-{"max_output_tokens": 0}]': "vLLM takes it for a context that is full",
    '[vllm-{"top_logprobs": 99}]': "vLLM reads it where log-probabilities are included",
    '[vllm-{"input": [{"role": "user", "content": [{"type": "input_imag]':
        "vLLM reads images, and names no field where its model does not",
    '[vllm-{"input": [{"role": "user", "content": "x", "shouted": true}]': DROPPED,
    '[vllm-{"messages": [{"role": "user", "content": "Tell me a story a]': DROPPED,
    '[vllm-{"spoken": true}]': DROPPED,
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
}  # fmt: skip
"""What a test's name holds, and the reason."""


def difference(name: str) -> str | None:
    return next((why for part, why in DIFFERENCES.items() if part in name), None)
