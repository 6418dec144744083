"""Tokenizer: byte-level BPE with DeepSeek's splits and special tokens, in Hugging Face's files."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from leanseek.errors import CheckpointError, ConfigError
from leanseek.files import write_atomic, write_json

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
THINK, END_THINK = "<think>", "</think>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
# In this order from id 0. Only the first three ids are the same in DeepSeek's own vocabularies.
SPECIAL_TOKENS = (
    BOS,
    EOS,
    PAD,
    THINK,
    END_THINK,
    USER,
    ASSISTANT,
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
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

# DeepSeek-V3's splits: digit runs of one to three, CJK and kana runs, then words, punctuation and space.
_SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

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


class Tokenizer:
    """Text to token ids and back.

    Args:
        fast: the `tokenizers` object that does the work.
    """

    def __init__(self, fast: FastTokenizer) -> None:
        # Plain text never becomes a special token: encoding splits as if special tokens were text.
        fast.encode_special_tokens = True
        self._fast = fast
        self.vocab_size: int = fast.get_vocab_size()
        self.bos_id, self.eos_id = self.id_of(BOS), self.id_of(EOS)
        self.pad_id = self.id_of(PAD)
        added = fast.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary.

        Args:
            texts: what it is learnt from; the same texts give the same tokenizer.
            vocab_size: tokens, special ones included.
        Raises:
            ConfigError: a vocabulary too small for the bytes and the special tokens.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ConfigError(f"tokenizer.vocab_size = {vocab_size}: at least {SMALLEST_VOCABULARY} are needed")
        fast = FastTokenizer(models.BPE())
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS]
        fast.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
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
        """Read a folder's tokenizer.json.

        Raises:
            CheckpointError: the file is missing, damaged, or lacks DeepSeek's special tokens.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file; a model folder has its tokenizer there")
        try:
            fast = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for every damaged file
            raise CheckpointError(f"{path}: not a tokenizer ({error})") from None
        return cls(fast)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
        folder = Path(folder)
        write_atomic(folder / "tokenizer.json", self._fast.to_str(pretty=True))
        config = {
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
        write_json(folder / "tokenizer_config.json", config)

    def id_of(self, text: str) -> int:
        """Return the id of a token given by its exact text.

        Raises:
            CheckpointError: the vocabulary has no such token.
        """
        found = self._fast.token_to_id(text)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {text!r}; leanseek needs DeepSeek's special tokens")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; the text of a special token inside is encoded as plain text.

        Half a surrogate pair (JSON may bring one) is no character: it becomes U+FFFD.
        """
        return list(self._fast.encode(_whole(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return many texts' ids, in parallel."""
        whole = [_whole(text) for text in texts]
        return [list(e.ids) for e in self._fast.encode_batch_fast(whole, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the ids' text; bytes that are not UTF-8 become U+FFFD."""
        return str(self._fast.decode(list(ids), skip_special_tokens=skip_special))

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; none for a special token or an id without a token."""
        text = self._fast.id_to_token(token_id)
        if text is None or self.is_special(token_id):
            return b""
        try:
            return bytes(_BYTES[character] for character in text)
        except KeyError:  # an added token is kept as plain text
            return str(text).encode()

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a special token."""
        return token_id in self._special

    def incremental(self) -> IncrementalDecoder:
        """Return a decoder for tokens that arrive one by one."""
        return IncrementalDecoder(self)

    def digest_text(self) -> str:
        """Return the tokenizer's content as canonical text, for hashing."""
        return json.dumps(json.loads(self._fast.to_str()), sort_keys=True)


class IncrementalDecoder:
    """Turns tokens into text as they come, holding back characters that are not complete yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; "" while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.bytes_of(token_id))

    def flush(self) -> str:
        """Return what is held back, incomplete characters as U+FFFD."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for.

    Source: GPT-2's encoder: printable Latin-1 bytes are themselves, the others follow from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(shifted)}


_BYTES = _byte_alphabet()
