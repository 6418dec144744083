"""A user's own text: which files are read, what a document is, and what is wrong where."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from leanseek.data.sources import read_documents, source_files
from leanseek.errors import DataError


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "one.txt").write_text("first\nsecond\n")
    (tmp_path / "b" / "two.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth\\u2028 line", "by": 1}\n')
    (tmp_path / "a.txt").write_text("zeroth ä")
    (tmp_path / "b" / "notes.md").write_text("not read")
    (tmp_path / "b" / "blank.txt").write_text(" \n")
    return tmp_path


def test_a_txt_file_is_a_document_and_so_is_a_line_of_a_jsonl_file(texts):
    expected = ["zeroth ä", "first\nsecond\n", "third", "fourth\u2028 line"]
    assert list(read_documents([str(texts)])) == expected
    assert list(read_documents([str(texts / "b"), str(texts / "a.txt")])) == [*expected[1:], expected[0]]
    assert list(read_documents([str(texts / "b" / "two.jsonl")])) == expected[2:]


def test_files_are_sorted_so_that_the_corpus_is_the_same_everywhere(tmp_path):
    for name in ("z.txt", "a.jsonl", "m.txt", "M.txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in source_files([str(tmp_path)])] == ["M.txt", "a.jsonl", "m.txt", "z.txt"]


def test_blank_documents_are_left_out(tmp_path):
    lines = [{"text": ""}, {"text": "kept"}, {"text": " \n"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_documents([str(tmp_path)])) == ["kept"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "there"}\n')
    assert list(read_documents([str(tmp_path)])) == ["hello", "there"]


def test_half_a_surrogate_pair_becomes_a_character_that_can_be_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud83dy \\ud83d\\ude00"}\n')
    (text,) = read_documents([str(tmp_path)])
    assert text == "x\ufffdy \U0001f600" and text.encode()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl, line 2: not valid JSON"),
        ("x.jsonl", b'\n\n["a"]\n', r'x\.jsonl, line 3: an object with a "text" is needed'),
        ("x.jsonl", b'{"txt": "a"}\n', r'x\.jsonl, line 1: an object with a "text" is needed, such as \{"text":'),
        ("x.jsonl", b'{"text": 5}\n', r"x\.jsonl, line 1: an object"),
        ("x.jsonl", b'{"text": "\xff"}\n', r"x\.jsonl is not UTF-8 text"),
        ("x.txt", b"caf\xe9", r"x\.txt is not UTF-8 text"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(read_documents([str(tmp_path)]))


def test_what_comes_before_a_fault_is_given_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{')
    documents = read_documents([str(tmp_path)])
    assert next(documents) == "fine"
    with pytest.raises(DataError, match="line 2"):
        next(documents)


def test_sources_that_are_not_there_or_hold_nothing_are_told(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no such file or folder \(data\.sources\)"):
        list(read_documents([str(tmp_path / "nowhere")]))
    with pytest.raises(DataError, match=r"has no \.txt, \.jsonl or \.parquet file in it: put text there"):
        list(read_documents([str(tmp_path)]))
    for name, kind in (("x.pdf", r"\.pdf"), ("README", "files without ending")):
        (tmp_path / name).write_text("x")
        with pytest.raises(DataError, match=rf"{name}: \.txt, \.jsonl, \.parquet files are read, not {kind}"):
            source_files([str(tmp_path / name)])


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("x.txt", "y.jsonl"):
        (tmp_path / name).write_text("{}")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(DataError, match=rf"{name} cannot be read \(.*Permission denied"):
                list(read_documents([str(tmp_path / name)]))


def test_a_long_text_becomes_several_documents_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("leanseek.data.sources.LONGEST_DOCUMENT", 20)
    (tmp_path / "a.txt").write_text("one line\nanother line\nand a third one\n" + "x" * 50 + "\nend")
    found = list(read_documents([str(tmp_path)]))
    assert "".join(found) == (tmp_path / "a.txt").read_text()
    assert found[0] == "one line\n" and max(map(len, found)) == 20 and found[-1].endswith("end")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "y" * 45}))
    assert [len(text) for text in read_documents([str(tmp_path)])] == [20, 20, 5]


def test_a_line_without_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("leanseek.data.sources.LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "fits"}\n' + '{"text": "' + "z" * 500)
    with pytest.raises(DataError, match=r"a.jsonl, line 2: longer than 100 characters"):
        list(read_documents([str(tmp_path)]))


def test_tables_and_datasets_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'leanseek[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert list(read_documents([str(tmp_path)])) == ["one", "two"]
    parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="a column text is needed; it has body"):
        list(read_documents([str(tmp_path / "b.parquet")]))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not a Parquet file, or damaged"):
        list(read_documents([str(tmp_path / "c.parquet")]))
    datasets = pytest.importorskip("datasets", reason="datasets:NAME needs datasets: pip install 'leanseek[data]'")
    datasets.Dataset.from_dict({"text": ["three", "four"]}).save_to_disk(tmp_path / "saved")
    assert list(read_documents([f"datasets:{tmp_path / 'saved'}"])) == ["three", "four"]
    datasets.Dataset.from_dict({"words": ["three"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="a column text is needed; it has words"):
        list(read_documents([f"datasets:{tmp_path / 'other'}"]))
