"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leanseek.files import append_line, new_folder, sync_folder, write_atomic, write_json


def fail(*_: object, **__: object) -> None:
    raise OSError("disk full")


def test_content_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomic(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half a pair \ud83d")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"name": "größer", "values": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "größer",\n  "values": [\n    1\n  ]\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert "größer" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_lines_are_appended(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    append_line(path, "one")
    append_line(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"


def test_a_line_after_one_that_a_crash_cut_off_stands_on_its_own(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b"')
    append_line(path, '{"a": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a": 2, "b"', '{"a": 3}']


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "some" / "model"
    with new_folder(target) as temporary:
        fill(temporary, "old")
        assert not target.exists()
    with new_folder(target) as temporary:
        fill(temporary, "new")
        assert (target / "inner" / "file").read_text() == "old"
    assert (target / "inner" / "file").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_fails_to_fill_leaves_the_old_one(tmp_path):
    target = tmp_path / "model"
    with new_folder(target) as temporary:
        fill(temporary, "old")
    for failure in (OSError("disk full"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), new_folder(target) as temporary:
            fill(temporary, "new")
            raise failure
    assert (target / "inner" / "file").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with new_folder(target) as temporary:
        fill(temporary, "old")
    real = os.replace

    def fail_for_the_new_one(source: Path, to: Path) -> None:
        if Path(to) == target and not str(source).endswith(".old"):
            fail()
        real(source, to)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk full"), new_folder(target) as temporary:
        fill(temporary, "new")
    assert (target / "inner" / "file").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_can_be_synced(tmp_path):
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "nothing")
