"""Fields of a card: a whole one lacks none, and each that is taken out is named."""

from __future__ import annotations

import copy
import re

import pytest

from leanseek.cost.card import model_card
from leanseek.cost.fields import FIELDS, METADATA, hint_of, missing_fields
from leanseek.settings import Recipe

COST = {"seconds": 100.0, "tokens": 1_000_000, "flops": 1e13, "joules": 3.6e6, "usd": 0.002, "peak_memory_bytes": 1e9}
WHOLE = {
    "model": {
        "parameters": 1_000_000,
        "active_parameters": 500_000,
        "architecture": "deepseek_v3, 3 layers",
        "context_tokens": 1024,
        "made": "2026-11-25",
        "weights_sha256": "ab" * 32,
    },
    "machine": {"processor": "AMD | EPYC", "cores": 2, "torch": "2.13.0+cpu", "python": "3.11.7", "leanseek": "0.1.0"},
    "tokenizer": {**COST, "documents": 100, "train_tokens": 4000, "done": True},
    "pretrain": {**COST, "steps": 10, "done": True},
    "accuracy": {"largest": {"base": 0.1, "grpo": 0.9, "n": 64, "interval": {"base": [0, 0.2], "grpo": [0.8, 0.95]}}},
    "totals": {**COST, "meter": "measured:rapl"},
    "contamination": {"problems": 64, "found": 1, "documents": 100, "words": 13},
}
# Field -> what of the summary it is about.
ABOUT = {
    "date": ("model", "made"),
    "architecture and parameters": ("model", "parameters"),
    "input and output": ("model", "context_tokens"),
    "reproduction": ("model", "weights_sha256"),
    "software": ("machine", None),
    "training process": ("pretrain", "steps"),
    "compute": ("totals", "flops"),
    "energy": ("totals", "joules"),
    "carbon": ("totals", "joules"),
    "money": ("totals", "usd"),
    "evaluations": ("accuracy", None),
    "contamination check": ("contamination", None),
}


def card(summary, **recipe) -> str:
    return model_card(summary, Recipe(**recipe).model_dump(mode="json"))


def test_a_whole_card_lacks_nothing():
    text = card(WHOLE)
    assert missing_fields(text) == []
    for said in (
        "SHA-256 of the weights abab",
        "1 of 64 held-out problems",
        "largest 90.0% (80.0-95.0, 64 problems)",
        "481 g a kWh, world",
        "no grid was named",
        ": measured by the processor's own counters",
        "XI 2(e)",
        "leanseek make FOLDER/recipe.toml --run again --threads 2",
        "torch==2.13.0 ",
    ):
        assert said in text, said
    assert "emissions: 481\n" in text
    assert "| 56 g of CO2" in card(WHOLE, cost={"grid": "france"}) and "no grid" not in card(WHOLE, cost={"grid": "56"})


@pytest.mark.parametrize("field", ABOUT)
def test_what_a_run_does_not_know_is_named(field):
    summary = copy.deepcopy(WHOLE)
    part, key = ABOUT[field]
    if key is None:
        del summary[part]
    else:
        summary[part][key] = None
    text = card(summary)
    assert field in missing_fields(text) and "None" not in text


@pytest.mark.parametrize("field", [one.name for one in FIELDS])
def test_what_was_taken_out_by_hand_is_named(field):
    text = card(WHOLE)
    without = "\n".join(line for line in text.split("\n") if not line.startswith(f"| {field} |"))
    assert missing_fields(without) == [field] and hint_of(field)
    emptied = re.sub(
        rf"^\| {re.escape(field)} \| .* \| ([^|]*)\|$", rf"| {field} | not recorded | \1|", text, flags=re.M
    )
    assert missing_fields(emptied) == [field]


@pytest.mark.parametrize("key", METADATA)
def test_metadata_that_is_missing_is_named(key):
    front, rest = card(WHOLE).removeprefix("---\n").split("\n---\n", 1)
    kept = "\n".join(line for line in front.split("\n") if not line.startswith(f"{key}:"))
    assert missing_fields(f"---\n{kept}\n---\n{rest}") == [f"front matter: {key}"]


def test_stages_of_a_recipes_own_line_are_told():
    summary = copy.deepcopy(WHOLE)
    summary["mixed"] = {**COST, "steps": 7, "done": True}
    interval = {"base": [0, 0.2], "mixed": [0.3, 0.6]}
    summary["accuracy"] = {"largest": {"base": 0.1, "mixed": 0.45, "n": 64, "interval": interval}}
    text = card(summary)
    assert missing_fields(text) == [] and "pretrain 10 steps, mixed 7 steps" in text
    assert "largest 45.0% (30.0-60.0, 64 problems)" in text and "      value: 0.45\n" in text


def test_a_text_that_is_no_card_lacks_everything():
    assert len(missing_fields("hello")) == len(FIELDS) + len(METADATA)


def test_licences_of_own_sources_are_asked_for():
    own = {"sources": ("texts",)}
    assert missing_fields(card(WHOLE, data=own)) == ["data: licences"]
    assert "card.data_license" in hint_of("data: licences")
    named = card(WHOLE, data=own, card={"data_license": "CC-BY-4.0", "license": "some: odd # one"})
    assert missing_fields(named) == [] and 'license: "some: odd # one"' in named
