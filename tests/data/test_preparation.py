"""Shards in the making: the same bits however often it was stopped, in the order of the text, with all noted."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import leanseek.data.preparation as module
from leanseek.data.cluster import _document, _Judge, _read
from leanseek.data.preparation import Preparation, Wishes
from leanseek.data.shards import Shards, provenance, read_index
from leanseek.errors import DataError
from leanseek.tokens.tokenizer import FIM


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Sixty documents of some words in two files, small batches and shards."""
    rng = random.Random(0)
    words = "the of and sum total grid walk largest number step left right answer think line".split()
    folder = tmp_path / "texts"
    folder.mkdir()
    documents = [" ".join(rng.choices(words, k=rng.randint(25, 60))) for _ in range(60)]
    for name, part in (("a.jsonl", documents[:40]), ("b.jsonl", documents[40:])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 700)
    return folder, documents


def prepared(folder, to, tokenizer, **wishes):
    values = {"validation_fraction": 0.2, "shard_tokens": 300} | wishes
    return Preparation([str(folder)], to, tokenizer, Wishes(**values))


def test_shards_are_the_documents_in_order_each_after_a_bos(texts, tmp_path, tiny_tokenizer):
    folder, documents = texts
    index = prepared(folder, tmp_path / "out", tiny_tokenizer, license="CC0-1.0").run()
    held = documents[4::5]
    for part, wanted in (("train", [d for d in documents if d not in held]), ("validation", held)):
        ids = [i for text in wanted for i in [tiny_tokenizer.bos_id, *tiny_tokenizer.encode(text)]]
        shards = Shards(tmp_path / "out", part)
        assert shards.all().tolist() == ids and len(shards) == index["tokens"][part] == len(ids)
        assert len(index["shards"][part]) > 2
        assert [tiny_tokenizer.decode(one) for one in shards.documents()] == wanted
        at = torch.arange(7, len(ids) - 9, 11)[:, None] + torch.arange(9)
        assert torch.equal(shards[at], torch.tensor(ids)[at])
    assert index["validation_bytes"] == sum(len(text.encode()) for text in held)
    first, second = provenance([str(tmp_path / "out")])
    assert (first["source"], first["kept"], second["kept"]) == (str(folder / "a.jsonl"), 40, 20)
    assert first["license"] == "CC0-1.0"
    for source in (first, second):
        assert source["sha256"] == hashlib.sha256(Path(source["source"]).read_bytes()).hexdigest()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".npy") == ["index.json", "tokenizer"]


class Stopped(Exception):
    """What stands for a process that is killed."""


class Killer:
    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, count: int = 1, note: str = "") -> None:
        self.after -= 1
        if self.after == 0:
            raise Stopped


@pytest.mark.parametrize("wishes", [{}, {"filter": True, "deduplicate": True, "fim": 0.5}], ids=["plain", "all"])
def test_stopped_anywhere_it_ends_with_the_same_bits(texts, tmp_path, tiny_tokenizer, wishes):
    if "deduplicate" in wishes:
        pytest.importorskip("rensa")
    folder, documents = texts
    # Some duplicates, one nearly so.
    again = [documents[3], documents[50] + " more", documents[17]]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in again))
    whole = prepared(folder, tmp_path / "whole", tiny_tokenizer, **wishes).run()
    for after in (1, 2, 3, 4):
        try:
            prepared(folder, tmp_path / "parts", tiny_tokenizer, **wishes).run(Killer(after))
        except Stopped:
            continue
    parts = prepared(folder, tmp_path / "parts", tiny_tokenizer, **wishes)
    assert parts.begun
    found = parts.run()
    for part in ("train", "validation"):
        assert torch.equal(Shards(tmp_path / "whole", part).all(), Shards(tmp_path / "parts", part).all())
    assert {k: v for k, v in found.items() if k != "shards"} == {k: v for k, v in whole.items() if k != "shards"}
    if wishes:
        assert sum(source.get("near duplicate", 0) for source in found["sources"]) >= 3
        assert found["sources"][2].get("kept", 0) == 0
        assert found["false_positive_duplicates"] < 1e-4


def test_the_middle_is_filled_in_from_both_sides(texts, tmp_path, tiny_tokenizer):
    folder, documents = texts
    prepared(folder, tmp_path / "out", tiny_tokenizer, fim=1.0).run()
    train = Shards(tmp_path / "out").all().tolist()
    begin, hole, end = (tiny_tokenizer.id_of(text) for text in FIM)
    found = []
    for start in [i for i, token in enumerate(train) if token == tiny_tokenizer.bos_id]:
        stop = next((i for i in range(start + 1, len(train)) if train[i] == tiny_tokenizer.bos_id), len(train))
        one = train[start + 1 : stop]
        assert one[0] == begin
        prefix, rest = one[1 : one.index(hole)], one[one.index(hole) + 1 :]
        suffix, middle = rest[: rest.index(end)], rest[rest.index(end) + 1 :]
        found.append("".join(tiny_tokenizer.decode(part) for part in (prefix, middle, suffix)))
    assert found == [d for i, d in enumerate(documents) if i % 5 != 4]
    assert train.count(begin) == 48 and begin not in Shards(tmp_path / "out", "validation").all().tolist()


def test_about_the_share_that_is_wanted_is_turned(texts, tmp_path, tiny_tokenizer):
    preparation = prepared(texts[0], tmp_path / "out", tiny_tokenizer, fim=0.1)
    turned = sum(preparation._middle("some text", number) is not None for number in range(5000))
    assert 400 < turned < 600  # five standard deviations are 106


def test_what_does_not_fit_what_was_begun_is_told(texts, tmp_path, tiny_tokenizer):
    folder, _ = texts
    with pytest.raises(Stopped):
        prepared(folder, tmp_path / "out", tiny_tokenizer).run(Killer(4))
    with pytest.raises(DataError, match="begun with other sources, another tokenizer or other options"):
        prepared(folder, tmp_path / "out", tiny_tokenizer, fim=0.5)
    with pytest.raises(DataError, match="no folder of shards, or not a finished one"):
        Shards(tmp_path / "out")
    prepared(folder, tmp_path / "out", tiny_tokenizer).run()
    with pytest.raises(DataError, match="is finished already"):
        prepared(folder, tmp_path / "out", tiny_tokenizer)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(DataError, match="something else in it"):
        prepared(folder, tmp_path / "other", tiny_tokenizer)


def test_damaged_shards_are_told(texts, tmp_path, tiny_tokenizer):
    prepared(texts[0], tmp_path / "out", tiny_tokenizer).run()
    path = tmp_path / "out" / "train-00001.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"train-00001.npy: missing or damaged"):
        Shards(tmp_path / "out")
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"train-00001.npy: missing or damaged"):
        Shards(tmp_path / "out")
    (tmp_path / "out" / "index.json").write_text('{"format": 9}')
    with pytest.raises(DataError, match="format 1 is known"):
        read_index(tmp_path / "out")


def test_too_little_text_is_told(tmp_path, tiny_tokenizer):
    (tmp_path / "a.txt").write_text("few words")
    with pytest.raises(DataError, match="1 documents are left of 1: too few"):
        Preparation([str(tmp_path / "a.txt")], tmp_path / "out", tiny_tokenizer, Wishes()).run()
    with pytest.raises(DataError, match="0 documents are left of 1"):
        Preparation([str(tmp_path / "a.txt")], tmp_path / "filtered", tiny_tokenizer, Wishes(filter=True)).run()


class Elsewhere:
    """Readers as a cluster has them: judged and encoded by others, without Ray."""

    def __init__(self, tokenizer, **wishes):
        self.judge = _Judge(tokenizer, **wishes)

    def documents(self, sources, skipped):
        for number, (source, count) in enumerate(zip(sources, skipped, strict=True)):
            work = {"number": number, "name": source.name, "bytes": source.bytes, "skipped": count}
            rows = [*_read(work)]
            batch = {key: np.array([row[key] for row in rows], dtype=object) for key in rows[0]}
            judged = self.judge(batch)
            for at, last in enumerate(judged["last"]):
                row = {key: column[at] for key, column in judged.items()}
                yield number, row["text"] if last else _document(row)


@pytest.mark.parametrize("wishes", [{}, {"filter": True, "fim": 0.5}, {"deduplicate": True}])
def test_what_others_read_and_encode_becomes_the_same_shards(texts, tmp_path, tiny_tokenizer, wishes):
    if "deduplicate" in wishes:
        pytest.importorskip("rensa")
    folder, _ = texts
    lines = (folder / "a.jsonl").read_text().splitlines(keepends=True)
    (folder / "b.jsonl").write_text("".join(lines[:5]) + (folder / "b.jsonl").read_text())
    one = prepared(folder, tmp_path / "here", tiny_tokenizer, **wishes).run()
    readers = Elsewhere(tiny_tokenizer, filter=wishes.get("filter", False), deduplicate="deduplicate" in wishes, seed=0)
    two = Preparation(
        [str(folder)],
        tmp_path / "there",
        tiny_tokenizer,
        Wishes(**{"validation_fraction": 0.2, "shard_tokens": 300} | wishes),
        readers,
    ).run()
    assert one == two and one["documents"] > 20
    for path in (tmp_path / "here").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
