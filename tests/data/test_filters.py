"""Quality: ordinary prose is kept, and each kind of rubbish is named."""

from __future__ import annotations

import pytest

from leanseek.data.filters import fault_of

PROSE = (
    "The ship left the harbour at dawn, when the wind had turned to the west and the tide was running out. "
    "Nobody on the quay waved, for nobody had been told. By noon the coast was a grey line, and the captain "
    "went below to read the letter that had been given to him the night before.\n"
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PROSE, None),
        ("これは日本語の文章です。空白がないので、単語の数では判断できません。" * 3, None),
        (" \n ", "blank"),
        ("Too few words here.", "too short"),
        ("word " * 100_001, "too long"),
        ("a b c d e f g h " * 20, "length of words"),
        (PROSE + "# # # # # # # # # #", "symbols"),
        ("\n".join(f"- point number {w} of the whole list" for w in "abcdefghij"), "bullets"),
        (
            "\n".join(
                f"{w} goes on and on and on, as such lines are wont to, and then, after ten more words, it stops..."
                for w in "abcdefghij"
            ),
            "ellipses",
        ),
        ("12345 " * 10 + "67890 " * 10 + PROSE[:60], "few letters"),
        (PROSE + "Click here for more.\n" * 20, "repeated lines"),
        (PROSE + "buy cheap " * 60, "repeated words"),
        (PROSE + "\ufffd" * 20, "broken characters"),
    ],
)
def test_each_fault_is_found_by_its_name(text, fault):
    assert fault_of(text) == fault
