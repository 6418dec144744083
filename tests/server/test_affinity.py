from __future__ import annotations

import json
from collections import Counter

import pytest

from leanseek.server.affinity import ANYWHERE, key_of, ranked

SYSTEM = {"role": "system", "content": "be brief"}
USER, REPLY, MORE = ({"role": role, "content": role + " says"} for role in ("user", "assistant", "user"))


def key(**fields):
    return key_of(json.dumps(fields).encode())


@pytest.mark.parametrize("begins", [[SYSTEM, USER], [USER], [SYSTEM, SYSTEM, USER], [SYSTEM]])
def test_a_conversation_keeps_its_key_as_it_goes_on(begins):
    whole = [*begins, *([USER] if begins[-1] is SYSTEM else []), REPLY, MORE]
    if begins[-1] is not SYSTEM:
        assert key(messages=begins) == key(messages=whole, max_tokens=5) != ANYWHERE
        assert key(input=begins) == key(input=whole, stream=True)
    assert key(messages=begins) != key(messages=[{"role": "user", "content": "else"}])


def test_what_tells_conversations_apart():
    keys = {
        key(messages=[USER]),
        key(messages=[USER], user_id="ann"),
        key(messages=[USER], metadata={"user_id": "bob"}),
        key(messages=[USER], system="be kind"),
        key(messages=[USER], tools=[{"type": "function"}]),
        key(input="user says"),
        key(prompt="user says"),
        key(prompt=[1, 2, 3]),
    }
    assert len(keys) == 8 and ANYWHERE not in keys
    assert key(prompt="a" * 1024 + "b") == key(prompt="a" * 1024 + "c")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"{}", b'{"messages": []}', b'{"messages": 3}', b"\xff"]
)
def test_what_belongs_nowhere(body):
    assert key_of(body) == ANYWHERE


def test_any_json_has_a_key():
    for value in ([None], [[]], [{"role": []}], ["\ud800"]):
        assert isinstance(key(messages=value), str)


def test_replicas_get_equal_shares_and_only_the_share_of_one_that_goes_moves():
    names = [f"replica-{i}" for i in range(4)]
    keys = [f"key {i}" for i in range(2000)]
    homes = {k: ranked(k, names)[0] for k in keys}
    counts = Counter(homes.values())
    assert set(counts) == set(names) and min(counts.values()) > 400  # of 500; standard deviation 19
    for k in keys:
        assert sorted(ranked(k, names)) == names and ranked(k, names[::-1]) == ranked(k, names)
        without = ranked(k, names[1:])
        assert without == [name for name in ranked(k, names) if name != names[0]]
        if homes[k] != names[0]:
            assert without[0] == homes[k]
