"""What to send in place of fields that are refused. Data."""

from __future__ import annotations

from collections.abc import Mapping

CURES: Mapping[str, str] = {
    "enable_thinking": "send it inside chat_template_kwargs",
    "ebnf": "structured_outputs asks for a form",
    "extra_body": "the OpenAI client merges extra_body into the body: send its fields themselves",
    "extra_headers": "send them as HTTP headers",
    "extra_query": "send it in the URL",
    "format": "response_format asks for a form",
    "functions": "tools is their newer name",
    "grammar": "structured_outputs asks for a form",
    "guided_choice": "structured_outputs.choice asks for it",
    "guided_grammar": "structured_outputs asks for a form",
    "background": "it keeps no response",
    "conversation": "it keeps no response; send the conversation as input items",
    "previous_response_id": "it keeps no response; send the conversation as input items",
    "guided_json": "structured_outputs.json asks for it",
    "guided_regex": "structured_outputs.regex asks for it",
    "json_schema": "response_format asks for a form",
    "max_length": "the field here is max_tokens",
    "max_new_tokens": "the field here is max_tokens",
    "max_tokens_to_sample": "the field here is max_tokens",
    "min_new_tokens": "the field here is min_tokens",
    "model_kwargs": "send its fields themselves",
    "n_predict": "the field here is max_tokens",
    "no_stop_trim": "the field here is include_stop_str_in_output",
    "num_predict": "the field here is max_tokens",
    "options": "send its fields themselves: temperature, top_p, max_tokens, seed, stop",
    "parameters": "send its fields themselves: temperature, top_p, max_tokens, seed, stop",
    "random_seed": "the field here is seed",
    "regex": "structured_outputs.regex asks for it",
    "rep_pen": "the field here is repetition_penalty",
    "repeat_penalty": "the field here is repetition_penalty",
    "sampling_params": "send its fields themselves: temperature, top_p, max_tokens, seed, stop",
    "stop_sequences": "the field here is stop",
    "system": "send a message of the role system",
}
"""What to send in place of a refused field; said where the cure is not refused itself."""
