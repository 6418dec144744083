"""Whatever is done to a sealed file is found, and what a crash does is told from it."""

from __future__ import annotations

import json

import pytest

from leanseek.cost.chain import append_sealed, read_chain, seal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "chain.jsonl"
    for number in range(5):
        append_sealed(path, {"number": number, "value": 0.1 * number, "text": "ü\u2028", "nothing": float("nan")})
    return path


def lines(path) -> list[str]:
    return path.read_text().rstrip("\n").split("\n")


def test_a_whole_file_fits(path):
    found = read_chain(path)
    assert [row["number"] for row in found.rows] == list(range(5)) and not found.broken and not found.torn
    assert found.head == found.seals[-1] == json.loads(lines(path)[-1])["hash"]
    assert found.rows[0]["nothing"] is None and "hash" not in found.rows[0]
    assert read_chain(path.with_name("missing")).rows == []


@pytest.mark.parametrize("line", range(5))
def test_every_edited_line_is_found(path, line):
    changed = lines(path)
    changed[line] = changed[line].replace(f'"number": {line}', '"number": 7')
    path.write_text("\n".join(changed) + "\n")
    assert read_chain(path).broken == [line + 1]


@pytest.mark.parametrize("line", range(4))
def test_a_line_that_is_edited_and_sealed_anew_breaks_the_next(path, line):
    changed = lines(path)
    before = json.loads(changed[line - 1])["hash"] if line else ""
    row = {"number": 7}
    changed[line] = json.dumps({**row, "hash": seal(before, row)})
    path.write_text("\n".join(changed) + "\n")
    assert read_chain(path).broken == [line + 2]


@pytest.mark.parametrize("line", range(4))
def test_lines_that_are_taken_out_are_found(path, line):
    changed = lines(path)
    del changed[line]
    path.write_text("\n".join(changed) + "\n")
    assert read_chain(path).broken == [line + 1]


def test_lines_that_change_places_are_found_and_so_is_one_without_a_seal(path):
    a, b, *rest = lines(path)
    path.write_text("\n".join([b, a, *rest]) + "\n")
    assert read_chain(path).broken
    path.write_text("\n".join([a, '{"number": 9}', b, *rest]) + "\n")
    assert read_chain(path).broken[0] == 2


def test_lines_missing_at_the_end_show_in_the_head_alone(path):
    head = read_chain(path).head
    path.write_text("\n".join(lines(path)[:-1]) + "\n")
    found = read_chain(path)
    assert not found.broken and found.head != head


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_torn_line_is_told_and_passed_over(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    if cut == 1:  # only the end of the line: nothing is lost
        assert len(read_chain(path).rows) == 5
        return
    found = read_chain(path)
    assert found.torn == [5] and not found.broken and len(found.rows) == 4
    append_sealed(path, {"number": 5})
    found = read_chain(path)
    assert found.torn == [5] and not found.broken and found.rows[-1] == {"number": 5}


def test_a_whole_line_spoilt_on_purpose_is_more_than_torn(path):
    changed = lines(path)
    changed[2] = changed[2][:-5]
    path.write_text("\n".join(changed) + "\n")
    found = read_chain(path)
    assert found.torn == [3] and found.broken == [4]
