"""The card of a whole run, of half a run, and of nothing; names cannot break its Markdown."""

from __future__ import annotations

import json

import pytest
import yaml

from leanseek.cost.card import model_card, share_with_interval
from leanseek.cost.energy import describe_meter
from leanseek.cost.fields import METADATA
from leanseek.settings import Recipe

COST = {
    "seconds": 123.0,
    "tokens": 1_900_000,
    "flops": 3.1e13,
    "joules": 900.0,
    "usd": 0.0017,
    "peak_memory_bytes": 1.3e9,
}
SUMMARY = {
    "model": {"parameters": 1_843_904, "active_parameters": 727_056, "name": "laptop"},
    "machine": {"processor": "AMD EPYC", "cores": 2},
    "pretrain": {**COST, "done": True, "steps": 450, "bits_per_byte": 0.4321},
    "sft": {**COST, "done": True, "steps": 90},
    "grpo": {**COST, "steps": 60},
    "accuracy": {
        "running_total": {
            "base": 0.02,
            "sft": 0.412,
            "grpo": 0.731,
            "n": 512,
            "interval": {"base": [0.01, 0.035], "sft": [0.37, 0.455], "grpo": [0.69, 0.768]},
            "pass_at_k": {"grpo": {"1": 0.7, "4": 0.85}},
            "sound": {"grpo": 0.97},
        }
    },
    "totals": {**COST, "seconds": 369.0, "joules": 2700.0, "usd": 0.0051, "meter": "estimated:virtual-cpu"},
    "mtp": {"acceptance": 0.83},
}


def yaml_keys(text: str) -> set[str]:
    front = text.removeprefix("---\n").partition("\n---\n")[0]
    return set(yaml.safe_load(front))


def card(summary, **recipe) -> str:
    return model_card(summary, Recipe(**recipe).model_dump())


def test_a_whole_card_has_its_figures_and_names_its_meter():
    text = card(SUMMARY, name="laptop", environments=("running_total",))
    assert text.startswith("---\nlicense: mit\n") and yaml_keys(text) >= set(METADATA)
    front, body = text.removeprefix("---\n").split("\n---\n")
    assert all(line.startswith("- ") or ": " in line or line.endswith(":") for line in front.splitlines())
    assert body.lstrip().startswith("# laptop\n")
    for figure in (
        "1.8M parameters, of which a token uses 727k",
        "| running_total | 2.0% (1.0-3.5) | 41.2% (37.0-45.5) | 73.1% (69.0-76.8) | 512 |",
        "pass@1 70.0%, pass@4 85.0%",
        "97.0% of the right answers",
        "0.432 bits per byte",
        "83.0%",
        "| Pretraining | 2 min 3 s | 1.9M | 31 TFLOP | 900 J | $0.0017 | 1.3 GB |",
        "| **all** | 6 min 9 s |",
        "0.75 Wh in all",
        "estimated as 3.5 W for a busy core",
        "$0.05 for an hour",
        "**GRPO (reinforcement learning)** (not finished)",
        "450 steps",
        "leanseek serve FOLDER",
    ):
        assert figure in text


@pytest.mark.parametrize("parts", [(), ("model",), ("pretrain",), ("accuracy",), ("totals", "machine")])
def test_half_a_run_has_a_card_too(parts):
    text = card({part: SUMMARY[part] for part in parts})
    assert "## Limits and risks" in text and "## Use" in text
    assert "None" not in text
    assert ("## What it cost" in text) == bool({"pretrain", "totals"} & set(parts))


def test_a_stage_that_was_not_evaluated_has_no_column():
    accuracy = {"largest": {"base": 0.1, "sft": None, "n": 16}}
    assert "| largest | 10.0% | - | 16 |" in card({"accuracy": accuracy})


def test_names_cannot_break_the_card():
    text = card({}, name="a\n# b <script>|", data={"sources": ("x|y`z",)})
    assert "# a \\# b \\<script\\>\\|\n" in text
    assert "x\\|y\\`z" in text


def test_the_card_is_made_of_what_json_gives_back():
    assert card(json.loads(json.dumps(SUMMARY))) == card(SUMMARY)


def test_shares():
    assert share_with_interval(None) == "-"
    assert share_with_interval(0.5) == "50.0%"
    assert share_with_interval(0.5, [0.4, 0.6]) == "50.0% (40.0-60.0)"


def test_meters_in_words():
    assert "RAPL" in describe_meter("measured:rapl")
    both = describe_meter("measured:nvml+estimated:virtual-cpu")
    assert "NVML" in both and "3.5 W for a busy core and 0.74 W" in both
    assert "700 W" in describe_meter("estimated:h100")
    assert describe_meter("measured:rapl, estimated:gone").endswith("; estimated:gone")
    assert describe_meter("") == "not known"
