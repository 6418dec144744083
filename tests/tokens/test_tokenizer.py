"""The tokenizer: nothing is lost, special tokens are never made from text, and files load elsewhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import CheckpointError, ConfigError
from leanseek.tokens.tokenizer import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    PAD,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    Tokenizer,
)

# Any text, and text full of what a tokenizer trips over.
PIECES = [
    "<think>",
    "</think>",
    EOS,
    "<｜User｜>",
    "\n",
    "\r\n",
    " ",
    "\t",
    "的",
    "😀",
    "é",
    "e\u0301",
    "\ufffd",
    "7",
    "a",
]
AWKWARD = st.lists(st.sampled_from(PIECES)).map("".join)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | AWKWARD


@given(TEXTS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_comes_back_whole(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text), skip_special=False) == text
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


@given(TEXTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_text_never_becomes_a_special_token(tiny_tokenizer, text):
    assert not any(tiny_tokenizer.is_special(token) for token in tiny_tokenizer.encode(text))
    assert tiny_tokenizer.encode_batch([text, text]) == [tiny_tokenizer.encode(text)] * 2


def test_half_a_surrogate_pair_becomes_a_replacement_character(tiny_tokenizer):
    """JSON can carry one, and a server must not fall over it."""
    expected = tiny_tokenizer.encode("a\ufffdb")
    assert tiny_tokenizer.encode("a\ud83db") == expected
    assert tiny_tokenizer.encode_batch(["a\ud83db", "a\ude00b"]) == [expected] * 2
    assert tiny_tokenizer.encode("\ud83d\ude00") == tiny_tokenizer.encode("😀")


def test_special_tokens_in_a_loaded_tokenizer_stay_text_too(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = f"say {EOS} and </think>"
    assert loaded.encode(text) == tiny_tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text


def test_each_byte_has_its_token(tiny_tokenizer):
    tokens = [tiny_tokenizer.bytes_of(token) for token in range(len(SPECIAL_TOKENS), tiny_tokenizer.vocab_size)]
    assert {token for token in tokens if len(token) == 1} == {bytes([byte]) for byte in range(256)}
    assert tiny_tokenizer.bytes_of(tiny_tokenizer.eos_id) == tiny_tokenizer.bytes_of(100_000) == b""


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\xe4", b"\xf0\x9f", b"\x98\x80", b"\xc3"]), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_decode_the_same_way_by_token_and_at_once(tiny_tokenizer, pieces):
    """Broken UTF-8 above all: a wrong start, then a character that is whole."""
    token_of = {tiny_tokenizer.bytes_of(token): token for token in range(len(SPECIAL_TOKENS), 320)}
    ids = [token_of[bytes([byte])] for piece in pieces for byte in piece]
    stream = tiny_tokenizer.incremental()
    assert "".join([*(stream.push(token) for token in ids), stream.flush()]) == tiny_tokenizer.decode(ids)


@given(st.lists(st.integers(0, 319), max_size=40))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decoding_token_by_token_gives_what_decoding_all_gives(tiny_tokenizer, ids):
    """Any ids, so most are broken UTF-8, as a young model writes it."""
    stream = tiny_tokenizer.incremental()
    assert "".join([*(stream.push(token) for token in ids), stream.flush()]) == tiny_tokenizer.decode(ids)


@given(TEXTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decoding_a_text_token_by_token_gives_the_text(tiny_tokenizer, text):
    stream = tiny_tokenizer.incremental()
    assert "".join([*(stream.push(token) for token in tiny_tokenizer.encode(text)), stream.flush()]) == text


def test_a_character_is_held_back_until_it_is_whole_and_no_longer(tiny_tokenizer):
    ids = tiny_tokenizer.encode("a😀b")
    assert len(ids) == 6, "the tiny vocabulary has no token for it, so it comes byte by byte"
    stream = tiny_tokenizer.incremental()
    assert [stream.push(token) for token in ids] == ["a", "", "", "", "😀", "b"]
    assert [stream.push(token) for token in ids[1:3]] == ["", ""]
    assert stream.flush() == "\ufffd" and stream.flush() == ""
    assert stream.push(ids[0]) == "a", "after a flush it starts anew"


def test_added_tokens_that_are_not_special_are_text(tmp_path, tiny_tokenizer):
    """R1's own tokenizer has its thinking marks so; and some added tokens are outside the byte alphabet."""
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for token in values["added_tokens"]:
        if token["content"] in ("<think>", "</think>", "<｜fim▁hole｜>"):
            token["special"] = False
    path.write_text(json.dumps(values), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    ids = [loaded.id_of("<think>"), *loaded.encode("a"), loaded.id_of("<｜fim▁hole｜>"), loaded.id_of("</think>")]
    stream = loaded.incremental()
    assert "".join([*(stream.push(token) for token in ids), stream.flush()]) == loaded.decode(ids)
    assert loaded.decode(ids) == "<think>a<｜fim▁hole｜></think>"


def test_training_is_repeatable_and_fills_the_vocabulary():
    texts = [f"start {i} step +{i % 9}\n" for i in range(400)]
    first, second = Tokenizer.train(texts, 300), Tokenizer.train(iter(texts), 300)
    assert first.digest_text() == second.digest_text()
    assert first.vocab_size == 300
    assert first.digest_text() != Tokenizer.train(texts[:50], 300).digest_text()


def test_special_tokens_have_their_places(tiny_tokenizer):
    assert [tiny_tokenizer.id_of(text) for text in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (tiny_tokenizer.bos_id, tiny_tokenizer.eos_id, tiny_tokenizer.pad_id) == (0, 1, 2)
    assert tiny_tokenizer.is_special(3) and not tiny_tokenizer.is_special(len(SPECIAL_TOKENS))
    assert tiny_tokenizer.decode([0, *tiny_tokenizer.encode("a"), 1]) == "a"
    assert tiny_tokenizer.decode([0, *tiny_tokenizer.encode("a"), 1], skip_special=False) == f"{BOS}a{EOS}"


def test_numbers_are_split_in_groups_of_three_digits_and_apart_from_words():
    tokenizer = Tokenizer.train(["12345 12345 step12345 " * 50], SMALLEST_VOCABULARY + 30)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("12345")]
    assert "".join(pieces) == "12345" and all(len(piece) <= 3 for piece in pieces)
    assert not any(piece[-1:].isdigit() and piece[:1].isalpha() for piece in _all_tokens(tokenizer))


def _all_tokens(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([token]) for token in range(len(SPECIAL_TOKENS), tokenizer.vocab_size)]


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(ConfigError, match=f"tokenizer.vocab_size = 100: at least {SMALLEST_VOCABULARY} are needed"):
        Tokenizer.train(["a"], 100)


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path / "folder")
    loaded = Tokenizer.load(tmp_path / "folder")
    assert loaded.digest_text() == tiny_tokenizer.digest_text()
    config = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (BOS, EOS, PAD)
    assert config["chat_template"] == CHAT_TEMPLATE


@pytest.mark.parametrize("content", [None, "{", "{}", '{"version": "1.0"}'])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_deepseeks_tokens_is_refused(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(EOS, "<end>"))
    with pytest.raises(CheckpointError, match="has no token '<｜end▁of▁sentence｜>'"):
        Tokenizer.load(tmp_path)


# Other people's tokenizers.


@pytest.fixture(scope="module")
def v2_tokenizer() -> Tokenizer:
    return Tokenizer.train([f"start {i} étape +{i % 9} 漢字가나\n" for i in range(300)], 320, style="v2")


def test_both_ways_to_split_can_be_trained(v2_tokenizer):
    assert v2_tokenizer.vocab_size > SMALLEST_VOCABULARY
    assert all(len(token) == 1 or not any(c.isdigit() for c in token) for token in _all_tokens(v2_tokenizer))
    with pytest.raises(ConfigError, match="style = 'v3x': accepted are v2, v3; did you mean v3"):
        Tokenizer.train(["a"], 300, style="v3x")


@pytest.mark.parametrize("which", ["v2", "qwen", "tiny"])
@given(ids=st.lists(st.integers(0, 330), max_size=30), text=TEXTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_tokenizer_loses_text_token_by_token(v2_tokenizer, qwen, tiny_tokenizer, which, ids, text):
    tokenizer = {"v2": v2_tokenizer, "qwen": qwen, "tiny": tiny_tokenizer}[which]
    stream = tokenizer.incremental()
    pieces = [*(stream.push(token) for token in ids), stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(piece.encode() is not None for piece in pieces)
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded) == text and not set(encoded) & tokenizer.added_tokens.keys()


@given(ids=st.lists(st.integers(0, 323), max_size=30), skip=st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decoding_is_the_librarys(qwen, tmp_path_factory, ids, skip):
    """Of ids that exist; tags that are not special are text to both."""
    from tokenizers import Tokenizer as Fast

    folder = tmp_path_factory.mktemp("saved")
    qwen.save(folder)
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    ids = [i for i in ids if i < fast.get_vocab_size()]
    if not skip:  # the library starts characters anew at a token that it shows
        ids = [i for i in ids if i not in qwen.added_tokens] or ids[:1]
    assert qwen.decode(ids, skip_special=skip) == fast.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_are_not_called_special_are_not_made_of_text_either(make_tokenizer, special):
    """DeepSeek's own files call <think>, <｜User｜> and the tool tokens not special."""
    tokenizer = make_tokenizer({"<tool_call>": special, "  ": False})
    assert tokenizer.id_of("<tool_call>") not in tokenizer.encode("a<tool_call>b")
    assert tokenizer.is_special(tokenizer.id_of("<tool_call>")) == special
    assert tokenizer.decode([tokenizer.id_of("<tool_call>")]) == ("" if special else "<tool_call>")
    assert tokenizer.id_of("  ") in tokenizer.encode("a  b"), "runs of spaces are no marks"


def test_a_foreign_tokenizer_is_saved_as_it_was(tmp_path, make_tokenizer):
    config = {
        "bos_token": None,
        "eos_token": {"content": EOS, "lstrip": False},
        "model_max_length": 7,
        "chat_template": "x",
    }
    tokenizer = make_tokenizer({"<tool_call>": False}, config=config)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == config
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert [one["special"] for one in added if one["content"] == "<tool_call>"] == [False]
    assert Tokenizer.load(tmp_path).digest_text() == tokenizer.digest_text()


@pytest.mark.parametrize(
    ("config", "bos", "eos", "pad"),
    [
        (None, BOS, EOS, PAD),
        ({}, BOS, EOS, PAD),
        ({"bos_token": None, "eos_token": {"content": "<think>"}, "pad_token": None}, None, "<think>", "<think>"),
        ({"bos_token": "</think>", "eos_token": None, "pad_token": EOS}, "</think>", EOS, EOS),
    ],
)
def test_ends_are_those_of_the_config(make_tokenizer, config, bos, eos, pad):
    tokenizer = make_tokenizer(config=config)
    assert tokenizer.bos_id == (None if bos is None else tokenizer.id_of(bos))
    assert (tokenizer.eos_id, tokenizer.pad_id) == (tokenizer.id_of(eos), tokenizer.id_of(pad))


def test_what_is_missing_is_told_only_when_it_is_asked_for(make_tokenizer):
    tokenizer = make_tokenizer(lacks=(BOS, PAD, "<think>"), config={})
    assert tokenizer.bos_id is None and tokenizer.pad_id == tokenizer.eos_id and tokenizer.find("<think>") is None
    with pytest.raises(CheckpointError, match="has no token '<think>'"):
        tokenizer.id_of("<think>")
    with pytest.raises(CheckpointError, match="has no token '<none>'"):
        make_tokenizer(config={"bos_token": "<none>"})


def test_a_folder_says_more_about_its_tokenizer(make_tokenizer):
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    named = make_tokenizer(config={"chat_template": several})
    assert named.chat_template == "b" and named.model_type is None
    beside = make_tokenizer(config={}, chat_template__jinja="c", config__json='{"model_type": "qwen3"}')
    assert (beside.chat_template, beside.model_type) == ("c", "qwen3")
    assert make_tokenizer(config={}).chat_template is None
    for content in ("{", "[1]", "[" * 99_999):
        with pytest.raises(CheckpointError, match=r"config\.json: "):
            make_tokenizer(config={}, config__json=content)


def test_a_tokenizer_that_is_not_of_bytes_is_refused(tmp_path):
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    Fast(models.WordLevel({EOS: 0, "a": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="not byte-level"):
        Tokenizer.load(tmp_path)
