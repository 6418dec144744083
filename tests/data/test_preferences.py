"""Preferences: what a file of pairs may hold."""

from __future__ import annotations

import json

import pytest

from leanseek.data.preferences import read_preferences
from leanseek.errors import DataError
from leanseek.messages import Message

ASKED = [{"role": "user", "content": "12"}]
PAIR = {"prompt": "12", "chosen": "24", "rejected": "25"}


def test_texts_messages_and_lists_are_the_same(tmp_path):
    path = tmp_path / "p.jsonl"
    reply = {"role": "assistant", "content": "24"}
    rows = [PAIR, {"messages": ASKED, "chosen": reply, "rejected": [reply | {"content": "25"}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_preferences(path)
    assert first.chosen.messages == second.chosen.messages == (Message("user", "12"), Message("assistant", "24"))
    assert first.rejected.messages == second.rejected.messages == (Message("user", "12"), Message("assistant", "25"))
    assert second.chosen.where.endswith("p.jsonl:2")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, ":1 must have either messages or prompt"),
        (PAIR | {"messages": ASKED}, ":1 must have either messages or prompt"),
        (PAIR | {"rejected": "24"}, "chosen and rejected are the same"),
        ({"prompt": "12", "chosen": "24"}, ":1: rejected must be one reply"),
        (PAIR | {"chosen": ASKED * 2}, ":1: chosen must be one reply"),
        (PAIR | {"chosen": ASKED[0]}, "chosen.role = 'user': a reply is the assistant's"),
        (PAIR | {"prompt": [*ASKED, {"role": "assistant", "content": "x"}]}, "prompt ends with the assistant"),
        (PAIR | {"prompt": []}, ":1: prompt must be a list of messages"),
    ],
)
def test_what_is_no_pair_is_told_by_its_line(tmp_path, row, said):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=said):
        read_preferences(tmp_path / "p.jsonl")
