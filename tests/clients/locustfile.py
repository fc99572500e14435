"""People who ask and wait, for Locust: whole chats, streams, and a look at the metrics."""

from __future__ import annotations

import os

from locust import HttpUser, between, task

HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8}


class Person(HttpUser):
    wait_time = between(0.01, 0.05)

    @task(3)
    def chat(self) -> None:
        self.client.post("/v1/chat/completions", json=CHAT, headers=HEADERS)

    @task(3)
    def stream(self) -> None:
        with self.client.post(
            "/v1/chat/completions", json={**CHAT, "stream": True}, headers=HEADERS, stream=True,
            catch_response=True,
        ) as answer:  # fmt: skip
            lines = [line for line in answer.iter_lines() if line]
            if lines[-1] != b"data: [DONE]":
                answer.failure(f"ended with {lines[-1]!r}")

    @task(1)
    def metrics(self) -> None:
        self.client.get("/metrics", headers=HEADERS)
