"""The server's own description, taken at its word by schemathesis: what it allows, and what it forbids."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, of the extra test")

# Under the other bases stand the same endpoints again.
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
LONGEST_S = 20.0  # a request at most: no hang; most take milliseconds


def check(listener, path, allowed, examples):
    """Send what the description allows or forbids; return how often each status came."""
    schema = schemathesis.openapi.from_url(f"{listener.url}/openapi.json")
    mode = schemathesis.GenerationMode.POSITIVE if allowed else schemathesis.GenerationMode.NEGATIVE
    statuses = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(schema[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case):
        began_s = time.monotonic()
        answer = case.call(timeout=LONGEST_S)
        assert time.monotonic() - began_s < LONGEST_S
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case.body, answer.text)
        if not allowed:
            assert answer.status_code >= 400, f"it took what its description forbids: {case.body!r}"
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    ask()
    assert listener.bridge.active == 0
    listener.bridge.engine.check_integrity()
    return statuses


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "forbidden"])
def test_it_means_what_it_says(tiny_server, path, allowed):
    statuses = check(tiny_server, path, allowed, 15)
    if allowed:
        assert statuses[200], statuses


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "forbidden"])
def test_it_means_what_it_says_many_times(tiny_server, path, allowed):
    check(tiny_server, path, allowed, 150)


def test_models_by_any_name(tiny_server):
    schema = schemathesis.openapi.from_url(f"{tiny_server.url}/openapi.json")

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(schema["/v1/models/{name}"]["GET"].as_strategy())
    def ask(case):
        assert case.call(timeout=LONGEST_S).status_code in (200, 404)

    ask()
