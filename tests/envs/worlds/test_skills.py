from __future__ import annotations

import pytest

from leanseek.envs.worlds.skills import Argument, Skill, read_call, read_plan, tool_call, written
from leanseek.messages import ToolCall

SKILLS = (Skill("go", "walk", (Argument("x", -9, 9, "m"), Argument("y", 0, 99, "m"))), Skill("stop", "stand"))


def test_a_call_is_the_same_as_a_line_and_as_a_tool_call():
    call = ("go", (-3, 40))
    assert read_plan(f"{written(call)}\nstop", SKILLS, 2) == [call, ("stop", ())]
    message = tool_call(call, SKILLS, 4, "why")
    assert message.tool_calls[0].arguments == '{"x":-3,"y":40}' and message.reasoning_content == "why"
    assert read_call(message.tool_calls[0], SKILLS) == call
    assert read_call(ToolCall("", "go", '{"y": 40.0, "x": -3}'), SKILLS) == call


@pytest.mark.parametrize(
    "text",
    ["", "\n", "go", "go 1", "go 1 2 3", "go 1  2", " go 1 2", "go 10 2", "go 1 2 ", "go 01 2", "go 1.0 2", "go ٣ 2",
     "go nan 2", "go 99999 2", "stop now", "fly 1 2", "stop\nstop\nstop", "go 1 2\n", "stop\x00"],
)  # fmt: skip
def test_a_plan_with_anything_else_in_it_is_none(text: str):
    assert read_plan(text, SKILLS, 2) is None


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("fly", "{}", "no such skill; there are go, stop"),
        ("go", "", "go takes x, y"),
        ("go", "[]", "must be a JSON object"),
        ("go", "{" * 250, "must be a JSON object"),
        ("go", '{"x": "9"' + " " * 400 + "}", "too long"),
        ("go", '{"x": 1, "y": 2, "z": 3}', "go takes x, y"),
        ("go", '{"x": NaN, "y": 2}', "x must be a whole number from -9 to 9"),
        ("go", '{"x": 1e999, "y": 2}', "x must be a whole number"),
        ("go", '{"x": true, "y": 2}', "x must be a whole number"),
        ("go", '{"x": 1, "y": 100}', "y must be a whole number from 0 to 99"),
        ("go", '{"x": "1", "y": 2}', "x must be a whole number"),
        ("stop", '{"now": 1}', "stop takes no arguments"),
    ],
)
def test_a_bad_call_is_a_sentence_for_the_model(name: str, arguments: str, said: str):
    with pytest.raises(ValueError, match=said):
        read_call(ToolCall("", name, arguments), SKILLS)


def test_skills_are_tools_with_bounds():
    spec = SKILLS[0].spec()
    assert spec.name == "go" and spec.parameters["required"] == ["x", "y"]
    assert spec.parameters["properties"]["x"]["minimum"] == -9 and spec.parameters["additionalProperties"] is False
