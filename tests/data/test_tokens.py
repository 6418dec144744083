"""The tokenised corpus: what is kept for validation, that it comes back from its folder, and what is refused."""

from __future__ import annotations

import errno

import pytest
import torch

import leanseek.data.tokens as module
from leanseek.data.tokens import TokenisedCorpus, recipe_documents, tokenise, train_tokenizer
from leanseek.errors import DataError
from leanseek.settings import Recipe


def recipe(sources: tuple[str, ...] = (), **data: object) -> Recipe:
    values = {"sources": sources, "documents": 60, "validation_fraction": 0.1, **data}
    return Recipe.model_validate({"environments": ["largest"], "data": values})


@pytest.fixture
def own_text(tmp_path):
    """Return a folder of 25 short documents."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "x.jsonl").write_text("".join(f'{{"text": "line {n} ä"}}\n' for n in range(25)))
    return folder


def test_every_tenth_document_is_held_back_and_each_starts_with_bos(own_text, tiny_tokenizer):
    corpus = tokenise(recipe((str(own_text),)), tiny_tokenizer)
    texts = [f"line {n} ä" for n in range(25)]
    held_out = texts[9::10]
    bos = tiny_tokenizer.bos_id

    def ids(chosen: list[str]) -> list[int]:
        return [token for text in chosen for token in (bos, *tiny_tokenizer.encode(text))]

    assert corpus.validation.tolist() == ids(held_out) and corpus.validation.dtype == torch.int32
    assert corpus.train.tolist() == ids([text for text in texts if text not in held_out])
    assert corpus.facts.documents == 25
    assert (corpus.facts.train_tokens, corpus.facts.validation_tokens) == (len(corpus.train), len(corpus.validation))
    assert corpus.facts.validation_bytes == sum(len(text.encode()) for text in held_out)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.5 - 1e-9, 30), (0.1, 6), (0.02, 1)])
def test_the_validation_share_is_the_recipes(tiny_tokenizer, fraction, held_out):
    corpus = tokenise(recipe(validation_fraction=fraction), tiny_tokenizer)
    assert int((corpus.validation == tiny_tokenizer.bos_id).sum()) == held_out
    assert int((corpus.train == tiny_tokenizer.bos_id).sum()) == 60 - held_out


def test_it_does_not_matter_how_many_are_encoded_at_once(tiny_tokenizer, monkeypatch):
    whole = tokenise(recipe(), tiny_tokenizer)
    monkeypatch.setattr(module, "ENCODED_AT_ONCE", 7)
    parts = tokenise(recipe(), tiny_tokenizer)
    assert torch.equal(whole.train, parts.train) and whole.facts == parts.facts


def test_a_corpus_comes_back_from_its_folder(tmp_path, tiny_tokenizer):
    corpus = tokenise(recipe(), tiny_tokenizer)
    corpus.save(tmp_path / "corpus")
    loaded = TokenisedCorpus.load(tmp_path / "corpus")
    assert torch.equal(loaded.train, corpus.train) and torch.equal(loaded.validation, corpus.validation)
    assert loaded.facts == corpus.facts


@pytest.mark.parametrize("name", ["tokens.safetensors", "facts.json"])
def test_a_damaged_folder_is_told(tmp_path, tiny_tokenizer, name):
    folder = tmp_path / "corpus"
    tokenise(recipe(), tiny_tokenizer).save(folder)
    whole = (folder / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff\xfe\xff", b"[1]", b"{}", None):
        (folder / name).unlink(missing_ok=True) if content is None else (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=r"the corpus is missing or damaged .* start afresh with --fresh"):
            TokenisedCorpus.load(folder)


def test_a_full_disk_leaves_no_half_corpus(tmp_path, tiny_tokenizer, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    corpus = tokenise(recipe(), tiny_tokenizer)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(DataError, match=r"corpus cannot be written \(.*No space left on device"):
        corpus.save(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["one two\n", ""])
def test_too_few_documents_are_told(tmp_path, tiny_tokenizer, content):
    (tmp_path / "x.txt").write_text(content)
    count = 1 if content else 0
    with pytest.raises(DataError, match=rf"^{count} documents are too few to keep one in 10 .* give more text"):
        tokenise(recipe((str(tmp_path),)), tiny_tokenizer)


def test_validation_too_short_for_a_window_is_told(tmp_path, tiny_tokenizer):
    (tmp_path / "x.jsonl").write_text('{"text": "long enough"}\n{"text": "a"}\n')
    with pytest.raises(DataError, match="too few to keep one in 2"):
        tokenise(recipe((str(tmp_path),), validation_fraction=0.49), tiny_tokenizer)


def test_no_text_at_all_is_told(tmp_path):
    (tmp_path / "x.txt").write_text(" ")
    with pytest.raises(DataError, match=r"data\.sources = .*: there is no text in it"):
        train_tokenizer(recipe((str(tmp_path),)), 300)


def test_the_vocabulary_is_learnt_from_the_first_documents(own_text):
    few = recipe((str(own_text),)).model_copy(update={"tokenizer": Recipe().tokenizer.model_copy()})
    assert list(recipe_documents(few))[:2] == ["line 0 ä", "line 1 ä"]
    (own_text / "y.jsonl").write_text('{"text": "zebra zebra zebra zebra zebra"}\n' * 40)
    settings = {"tokenizer": {"training_documents": 25}}
    narrow = Recipe.model_validate({**few.model_dump(), **settings})
    sizes = [len(train_tokenizer(r, 320).encode("zebra")) for r in (few, narrow)]
    assert sizes[0] < sizes[1] == 5, "the second never saw the word"


def test_the_embedded_corpus_is_read_where_no_source_is_named():
    documents = list(recipe_documents(recipe()))
    assert len(documents) == 60 and documents == list(recipe_documents(recipe()))
