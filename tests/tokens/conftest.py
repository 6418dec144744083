"""Vocabularies of every kind, with all tokens or without DeepSeek's, and every chat format over them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.dsml import DSML
from leanseek.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.tokens.hostile import OPENING_TEMPLATE, QWEN_TEMPLATE, QWEN_TOKENS


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory, tiny_tokenizer) -> Callable[..., Tokenizer]:
    """Return a function that loads the tiny tokenizer with other added tokens and another config."""

    def make(
        added: dict[str, bool] | None = None, lacks: tuple[str, ...] = (), config: dict | None = None, **files: str
    ) -> Tokenizer:
        folder: Path = tmp_path_factory.mktemp("tokenizer")
        tiny_tokenizer.save(folder)
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        for place, text in enumerate(lacks):
            for token in values["added_tokens"]:
                if token["content"] == text:
                    token["content"] = f"<unused{place}>"
                    values["model"]["vocab"][f"<unused{place}>"] = values["model"]["vocab"].pop(text)
        size = len(values["model"]["vocab"])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        values["added_tokens"] += [
            {"id": size + i, "content": text, "special": special, **flags}
            for i, (text, special) in enumerate((added or {}).items())
        ]
        path.write_text(json.dumps(values), encoding="utf-8")
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
        loaded = Tokenizer.load(folder)
        shutil.rmtree(folder)
        return loaded

    return make


@pytest.fixture(scope="session")
def qwen(make_tokenizer) -> Tokenizer:
    """As Qwen3's: no BOS, none of DeepSeek's marks but the thinking's, tags that are not special."""
    kept = ("<think>", "</think>", SPECIAL_TOKENS[1])
    lacks = tuple(text for text in SPECIAL_TOKENS if text not in kept)
    config = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": QWEN_TEMPLATE}
    return make_tokenizer(QWEN_TOKENS, lacks, config)


@pytest.fixture(scope="session")
def formats(tiny_tokenizer, make_tokenizer, qwen) -> dict[str, ChatFormat]:
    """Every chat format, and those with more than one way of working in each."""
    dsml = make_tokenizer({DSML: False})
    opening = make_tokenizer(config={"chat_template": OPENING_TEMPLATE})
    return {
        **{name: ChatFormat(tiny_tokenizer, name) for name in ("leanseek", "v2", "v3", "r1", "v31")},
        "v32": ChatFormat(dsml, "v32"),
        "template": ChatFormat(qwen),
        "template that opens thinking": ChatFormat(opening, "template"),
    }
