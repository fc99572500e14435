"""Paths that clients know from elsewhere get a reason, on every engine."""

from __future__ import annotations

import httpx
import pytest

from llmserve.entrypoints.http.not_served import NOT_SERVED, not_served
from support.serving import Serving

SERVED_BY_ENGINES = {"/v1/messages", "/v1/responses", "/v1/chat/completions", "/v1/completions"}


@pytest.mark.parametrize("path", sorted(NOT_SERVED.keys() - SERVED_BY_ENGINES))
def test_a_path_known_elsewhere_says_why_it_is_not_here(
    http: httpx.Client, server: Serving, path: str
) -> None:
    for below in ("", "/x"):
        answer = http.post(path + below, json={"model": server.model, "input": "x"})
        error = answer.json()["error"]
        assert answer.status_code == NOT_SERVED[path][0]
        assert error["type"] in ("invalid_request_error", "not_found_error")
        assert error["message"].startswith(f"{path}{below} is not served: ")
        assert "/v1/chat/completions" in error["message"]


def test_a_path_known_nowhere_is_404_as_before(http: httpx.Client, server: Serving) -> None:
    answer = http.get("/v1/embeddingsx")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


def test_embeddings_are_refused_as_a_thing_that_the_model_cannot_do() -> None:
    found = not_served("/v1/embeddings")
    assert found is not None
    assert found.status == 400
    assert "rank" in found.message
