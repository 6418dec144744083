"""Tokenizer: byte-level BPE with DeepSeek's splits and special tokens, in Hugging Face's files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from leanseek.errors import CheckpointError, ConfigError, nearest
from leanseek.files import write_atomic, write_json
from leanseek.tokens.decoding import BYTES, IncrementalDecoder
from leanseek.tokens.splits import PATTERNS, splits

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
THINK, END_THINK = "<think>", "</think>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
# Around a text whose middle is to be filled in: before the prefix, between it and the suffix, before the middle.
FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
# In this order from id 0. Only the first three ids are the same in DeepSeek's own vocabularies.
SPECIAL_TOKENS = (
    BOS,
    EOS,
    PAD,
    THINK,
    END_THINK,
    USER,
    ASSISTANT,
    *FIM,
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<｜Assistant｜></think>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{%- if thinking is defined and not thinking -%}{{ '<｜Assistant｜></think>' }}"
    "{%- else -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"
    "{%- endif -%}"
)


# What `save` writes beside a tokenizer that was trained here.
_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1 << 20,
    "chat_template": CHAT_TEMPLATE,
}


class Tokenizer:
    """Text to token ids and back.

    Args:
        fast: the `tokenizers` object that does the work; a byte-level one.
        config: what tokenizer_config.json says; None: that of one trained here.
        model_type: what config.json calls the model, where that is known.
    Raises:
        CheckpointError: the tokenizer is not byte-level, or has no token that ends a reply.
    """

    def __init__(
        self, fast: FastTokenizer, config: Mapping[str, Any] | None = None, *, model_type: str | None = None
    ) -> None:
        self._config = dict(_CONFIG if config is None else config)
        self.model_type = model_type
        added = fast.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        # id -> text of every token that stands for itself, special or not.
        self.added_tokens: dict[int, str] = {i: token.content for i, token in sorted(added.items())}
        values = json.loads(fast.to_str())
        if "ByteLevel" not in json.dumps(values.get("decoder")):
            raise CheckpointError(
                "the tokenizer is not byte-level BPE; accepted are DeepSeek's, Qwen's and Llama 3's kind"
            )
        # Plain text never becomes one of them: encoding splits as if they were text. The library knows that
        # of special tokens alone, and DeepSeek's own files call <think> or <｜User｜> not special. Runs of
        # whitespace are no marks of anything.
        self._plain = {i for i, token in added.items() if not token.special and token.content.strip()}
        if self._plain:
            self._flag(values, True)
            fast = FastTokenizer.from_str(json.dumps(values))
        fast.encode_special_tokens = True
        self._fast = fast
        self._bytes: dict[int, bytes] = {}
        self.vocab_size: int = fast.get_vocab_size()
        self.bos_id = self._named("bos_token", BOS)
        eos = self._named("eos_token", EOS)
        self.eos_id: int = self.id_of(EOS) if eos is None else eos
        pad = self._named("pad_token", PAD)
        self.pad_id: int = self.eos_id if pad is None else pad

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, style: str = "v3") -> Tokenizer:
        """Learn a vocabulary.

        Args:
            texts: what it is learnt from; the same texts give the same tokenizer.
            vocab_size: tokens, special ones included.
            style: "v3" or "v2", whose way of splitting text.
        Raises:
            ConfigError: a vocabulary too small for the bytes and the special tokens, or an unknown style.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ConfigError(f"tokenizer.vocab_size = {vocab_size}: at least {SMALLEST_VOCABULARY} are needed")
        if style not in PATTERNS:
            raise ConfigError(f"style = {style!r}: accepted are {', '.join(PATTERNS)}{nearest(style, PATTERNS)}")
        fast = FastTokenizer(models.BPE())
        fast.pre_tokenizer = splits(style)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        fast.train_from_iterator(texts, trainer)
        return cls(fast)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder's tokenizer.json; tokenizer_config.json, chat_template.jinja and config.json where they are.

        Raises:
            CheckpointError: the file is missing, damaged, or not of a kind that leanseek knows.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file; a model folder has its tokenizer there")
        try:
            fast = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for every damaged file
            raise CheckpointError(f"{path}: not a tokenizer ({error})") from None
        config = _read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = _read(template)
        model_type = _read_json(folder / "config.json").get("model_type")
        try:
            return cls(fast, config, model_type=model_type if isinstance(model_type, str) else None)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
        folder = Path(folder)
        write_atomic(folder / "tokenizer.json", json.dumps(self._values(), indent=2, ensure_ascii=False))
        write_json(folder / "tokenizer_config.json", self._config)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that came with the tokenizer; of several, the one called "default"."""
        found = self._config.get("chat_template")
        if isinstance(found, list):  # transformers' way to keep several: [{"name": ..., "template": ...}]
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        return found if isinstance(found, str) else None

    @property
    def efforts(self) -> tuple[str, ...]:
        """The efforts that the model was trained to heed, as `tokens.effort` writes them; none, as a rule."""
        found = self._config.get("reasoning_efforts")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @efforts.setter
    def efforts(self, efforts: Sequence[str]) -> None:
        self._config["reasoning_efforts"] = list(efforts)

    def find(self, text: str) -> int | None:
        """Return the id of a token given by its exact text; None if there is no such token."""
        found = self._fast.token_to_id(text)
        return None if found is None else int(found)

    @property
    def beginning(self) -> list[int]:
        """The ids that a text begins with: BOS, or nothing where the vocabulary has none."""
        return [] if self.bos_id is None else [self.bos_id]

    def id_of(self, text: str) -> int:
        """Return the id of a token given by its exact text.

        Raises:
            CheckpointError: the vocabulary has no such token.
        """
        found = self.find(text)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {text!r}, which is needed here")
        return found

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; the text of a special token inside is encoded as plain text.

        Half a surrogate pair (JSON may bring one) is no character: it becomes U+FFFD.
        """
        return list(self._fast.encode(whole(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return many texts' ids, in parallel."""
        clean = [whole(text) for text in texts]
        return [list(e.ids) for e in self._fast.encode_batch_fast(clean, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the ids' text; bytes that are not UTF-8 become U+FFFD."""
        data = (
            self.added_tokens[i].encode() if not skip_special and i in self._special else self.bytes_of(i) for i in ids
        )
        return b"".join(data).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; none for a special token or an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a special token."""
        return token_id in self._special

    def incremental(self) -> IncrementalDecoder:
        """Return a decoder for tokens that arrive one by one."""
        return IncrementalDecoder(self.bytes_of)

    def digest_text(self) -> str:
        """Return the tokenizer's content as canonical text, for hashing."""
        return json.dumps(self._values(), sort_keys=True)

    def digest(self) -> str:
        """Return the SHA-256 of the content, in hexadecimal: what shards say that they were made with."""
        return hashlib.sha256(self.digest_text().encode()).hexdigest()

    def _values(self) -> Any:
        """Return what tokenizer.json holds, each token called special or not as it was."""
        values = json.loads(self._fast.to_str())
        self._flag(values, False)
        return values

    def _flag(self, values: Any, special: bool) -> None:
        for token in values["added_tokens"]:
            if token["id"] in self._plain:
                token["special"] = special

    def _named(self, key: str, usual: str) -> int | None:
        """Return the id of the token that the config names; without a word from it, DeepSeek's, if there is one."""
        if key not in self._config:
            return self.find(usual)
        value = self._config[key]
        text = value.get("content") if isinstance(value, dict) else value
        return self.id_of(text) if isinstance(text, str) else None

    def _look_up(self, token_id: int) -> bytes:
        if token_id < 0 or self.is_special(token_id):
            return b""
        if token_id in self.added_tokens:  # kept as plain text
            return self.added_tokens[token_id].encode()
        text = self._fast.id_to_token(token_id)
        if text is None:
            return b""
        try:
            return bytes(BYTES[character] for character in text)
        except KeyError:
            return str(text).encode()


def whole(text: str) -> str:
    """Return a text with every half surrogate pair replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as text ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds {type(values).__name__}; a JSON object is needed")
    return values
