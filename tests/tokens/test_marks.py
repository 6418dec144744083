"""Marks: a conversation as one string, and nobody can write a mark into it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import CheckpointError
from leanseek.tokens.marks import CUT, Marks, plain
from leanseek.tokens.tokenizer import ASSISTANT, EOS, SPECIAL_TOKENS
from tests.tokens.hostile import HOSTILE


@given(pieces=st.lists(HOSTILE | st.sampled_from(SPECIAL_TOKENS).map(lambda text: ("mark", text)), max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_marks_become_tokens_and_text_stays_text(tiny_tokenizer, pieces):
    marks = Marks(tiny_tokenizer)
    marked = "".join(marks.need(one[1]) if isinstance(one, tuple) else plain(one) for one in pieces)
    ids = marks.encode(marked)
    named = [one[1] for one in pieces if isinstance(one, tuple)]
    assert [tiny_tokenizer.added_tokens[i] for i in ids if i in tiny_tokenizer.added_tokens] == named
    assert tiny_tokenizer.decode(ids) == marks.text(marked) == "".join(one for one in pieces if isinstance(one, str))


def test_a_cut_separates_without_a_token(tiny_tokenizer):
    marks = Marks(tiny_tokenizer)
    assert marks.encode(f"start{CUT}total") == tiny_tokenizer.encode("start") + tiny_tokenizer.encode("total")
    assert marks.text(f"a{CUT}b") == "ab"


def test_only_what_is_trusted_is_read_for_tokens(tiny_tokenizer):
    marks = Marks(tiny_tokenizer)
    assert marks.trust(f"a{EOS}<think>") == f"a{marks.eos}{marks.need('<think>')}"
    assert marks.encode(marks.trust("<｜Us") + marks.trust("er｜>")) != [tiny_tokenizer.id_of("<｜User｜>")]
    assert marks.find("nothing") == "nothing" and marks.within(["a" + marks.bos, CUT]) == {marks.bos}


def test_what_the_vocabulary_lacks_is_missed_only_when_needed(make_tokenizer):
    marks = Marks(make_tokenizer(lacks=(ASSISTANT,)))
    with pytest.raises(CheckpointError, match="has no token '<｜Assistant｜>'"):
        marks.need(ASSISTANT)
    none = Marks(make_tokenizer(config={"bos_token": None}))
    assert none.bos == "" and len(none.eos) == 1


def test_reserved_places_take_none(make_tokenizer):
    added = {f"<｜place▁holder▁no▁{i}｜>": True for i in range(2100)}
    assert len(Marks(make_tokenizer(added)).of_id) == len(SPECIAL_TOKENS)
    with pytest.raises(CheckpointError, match="2,120 added tokens"):
        Marks(make_tokenizer({f"<{i}>": True for i in range(2101)}))
