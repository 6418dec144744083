"""Effort: where a prompt says it, and that every problem keeps its own."""

from __future__ import annotations

from collections import Counter

from leanseek.messages import Message
from leanseek.tokens.effort import BUDGETS, effort_of, heeded, with_effort
from leanseek.tokens.tokenizer import Tokenizer

ASKED = [Message("user", "2+2")]


def test_it_stands_before_the_system_text():
    assert with_effort(ASKED, None) == ASKED
    assert with_effort(ASKED, "low") == [Message("system", "Reasoning Effort: 50"), *ASKED]
    told = with_effort([Message("system", "Be kind."), *ASKED], "max")
    assert told == [Message("system", "Reasoning Effort: 100\n\nBe kind."), *ASKED]


def test_problems_share_the_efforts_evenly_and_keep_theirs():
    found = Counter(effort_of(f"problem {i}", list(BUDGETS)) for i in range(3000))
    assert set(found) == set(BUDGETS) and max(found.values()) < 1100  # 1000 each, within 4 standard deviations
    assert effort_of("x", ["low", "max"]) == effort_of("x", ["low", "max"]) and effort_of("x", []) is None


def test_a_model_is_asked_for_what_it_knows():
    assert heeded("low", ("low", "high", "max")) == "low" and heeded(None, ("low", "high", "max")) == "high"
    assert heeded("high", ("low", "max")) == "max" and heeded("high", ()) is None


def test_a_checkpoint_says_which_efforts_it_heeds(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path)
    taught = Tokenizer.load(tmp_path)
    assert taught.efforts == ()
    taught.efforts = ["low", "max"]
    taught.save(tmp_path)
    assert Tokenizer.load(tmp_path).efforts == ("low", "max")
    assert Tokenizer.load(tmp_path).digest_text() == tiny_tokenizer.digest_text(), "its tokens are the same"
