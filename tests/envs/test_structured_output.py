from __future__ import annotations

import json

import pytest

from leanseek.envs.structured_output import StructuredOutput


@pytest.fixture
def task() -> StructuredOutput:
    return StructuredOutput()


def test_white_space_order_and_a_fence_do_not_count(task: StructuredOutput):
    problem = next(task.problems("train", 0, [3]))
    value = problem.data["value"]
    turned = dict(reversed(value.items()))
    for answer in (json.dumps(value, indent=2), json.dumps(turned), f"```json\n{json.dumps(value)}\n```"):
        assert task.check(problem, answer)


def test_types_keys_and_contents_do(task: StructuredOutput):
    problem = next(task.problems("train", 0, [2]))
    value = problem.data["value"]
    wrong = [
        {**value, "since": str(value["since"])},
        {**value, "since": float(value["since"])},
        {**value, "paid": int(value["paid"])},
        {**value, "likes": [*value["likes"], "x"]},
        {key: part for key, part in value.items() if key != "kind"},
        [value],
    ]
    gold = problem.data["answer"]
    texts = [
        *map(json.dumps, wrong),
        gold[:-1],
        gold[:-1] + ', "kind": "guest"}',
        "[" * 1900,
        "```",
        "NaN",
        f"{gold} {gold}",
    ]
    assert not any(task.check(problem, answer) for answer in texts)


def test_totals_are_those_of_the_text(task: StructuredOutput):
    value = next(task.problems("train", 0, [3])).data["value"]
    assert value["total"] == sum(item["count"] * item["price"] for item in value["items"])
