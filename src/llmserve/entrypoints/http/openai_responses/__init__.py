"""OpenAI's /v1/responses, without a memory: nothing of a response is kept once it is sent."""
