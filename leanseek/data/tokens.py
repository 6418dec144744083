"""TokenisedCorpus: a run's text as token ids, made once and kept in the run folder, so that resuming is exact."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leanseek.data.batches import Tokens, TokenStream
from leanseek.data.corpus import documents
from leanseek.data.mixture import Mixture
from leanseek.data.shards import TOKENIZER, Shards, read_index
from leanseek.data.sources import read_documents
from leanseek.data.traces import traces
from leanseek.envs.environment import load_environment
from leanseek.errors import DataError
from leanseek.files import new_folder, write_json
from leanseek.log import progress
from leanseek.settings import Recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

# Tokens of one window with a target and MTP's second one.
SMALLEST_VALIDATION = 3
# Documents that are encoded in one call.
ENCODED_AT_ONCE = 2_000

# Conversations of the corpus are drawn with seeds from here on, above those of SFT's worked solutions; and the chance,
# after each line, that one stops thinking: a base that mostly guesses, but sometimes thinks to the end, so that RL has
# something to make likelier.
DIALOGUE_SEED = 100_000
HASTY = 0.4


Stream = TokenStream | Mixture


@dataclass(frozen=True)
class CorpusFacts:
    """Counts of a corpus.

    Args:
        documents: of both parts.
        train_tokens, validation_tokens: each document's BOS counted.
        validation_bytes: UTF-8 bytes of the validation text.
    """

    documents: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int


@dataclass(frozen=True, eq=False)
class TokenisedCorpus:
    """Token ids, documents end to end, each after a BOS.

    Args:
        train, validation: int32.
        facts: counts.
    """

    train: Tensor
    validation: Tensor
    facts: CorpusFacts

    def save(self, folder: Path) -> None:
        """Write the corpus, whole or not at all."""
        try:
            with new_folder(folder) as temporary:
                save_file({"train": self.train, "validation": self.validation}, temporary / "tokens.safetensors")
                write_json(temporary / "facts.json", asdict(self.facts))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be written ({error})") from None

    @classmethod
    def load(cls, folder: Path) -> TokenisedCorpus:
        """Read what `save` wrote.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            tensors = load_file(folder / "tokens.safetensors")
            facts = CorpusFacts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
            return cls(tensors["train"], tensors["validation"], facts)
        except (OSError, SafetensorError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{folder}: the corpus is missing or damaged ({error}); start afresh with --fresh"
            ) from None


def load_corpus(recipe: Recipe, folder: Path) -> TokenisedCorpus:
    """Return what a recipe trains on: the corpus in a run's folder, or the first of its shards.

    Raises:
        DataError: it is missing or damaged.
    """
    return _of_shards(recipe)[1] if recipe.data.shards else TokenisedCorpus.load(folder)


def adopt_shards(recipe: Recipe) -> tuple[Tokenizer, CorpusFacts]:
    """Return the tokenizer and the counts of a recipe's shards.

    Raises:
        DataError: they are missing or damaged, or were made with different tokenizers.
    """
    tokenizer, corpus = _of_shards(recipe)
    return tokenizer, corpus.facts


def training_stream(recipe: Recipe, corpus: TokenisedCorpus, batch_sequences: int, bos_id: int | None) -> Stream:
    """Return the batches of a recipe's corpus, or of its shards by their weights.

    Raises:
        DataError: there is less than one batch.
    """
    length, masked = recipe.data.sequence_tokens, recipe.data.mask_documents
    parts: list[Tokens] = [Shards(folder) for folder in recipe.data.shards] or [corpus.train]
    streams = [TokenStream(part, length, batch_sequences, recipe.seed, bos_id, masked=masked) for part in parts]
    if len(streams) == 1:
        return streams[0]
    return Mixture(streams, recipe.data.weights or [len(part) for part in parts], recipe.seed)


def _of_shards(recipe: Recipe) -> tuple[Tokenizer, TokenisedCorpus]:
    folders = recipe.data.shards
    indices = [read_index(folder) for folder in folders]
    for folder, index in zip(folders, indices, strict=True):
        if index["tokenizer"] != indices[0]["tokenizer"]:
            raise DataError(
                f"{folder} was made with another tokenizer than {folders[0]}: give --tokenizer to leanseek data"
            )
    facts = CorpusFacts(
        documents=sum(index["documents"] for index in indices),
        train_tokens=sum(index["tokens"]["train"] for index in indices),
        validation_tokens=sum(index["tokens"]["validation"] for index in indices),
        validation_bytes=sum(index["validation_bytes"] for index in indices),
    )
    validation = torch.cat([Shards(folder, "validation").all() for folder in folders])
    tokenizer = Tokenizer.load(Path(folders[0]) / TOKENIZER)
    return tokenizer, TokenisedCorpus(torch.zeros(0, dtype=torch.int32), validation, facts)


def recipe_documents(recipe: Recipe) -> Iterator[str]:
    """Yield a recipe's documents: of its shards or the user's own sources if it names any, else the embedded corpus."""
    if recipe.data.shards:
        tokenizer = Tokenizer.load(Path(recipe.data.shards[0]) / TOKENIZER)
        return (tokenizer.decode(ids) for folder in recipe.data.shards for ids in Shards(folder).documents())
    if recipe.data.sources:
        return read_documents(recipe.data.sources)
    tasks = [load_environment(name) for name in recipe.environments]
    return documents(recipe.seed, recipe.data.documents, tasks, recipe.levels)


def train_tokenizer(recipe: Recipe, vocab_size: int) -> Tokenizer:
    """Learn a recipe's vocabulary from its first documents.

    Raises:
        DataError: there is no text.
    """
    texts = list(itertools.islice(recipe_documents(recipe), recipe.tokenizer.training_documents))
    if not texts:
        raise DataError(f"data.sources = {', '.join(recipe.data.sources)}: there is no text in it")
    return Tokenizer.train(texts, vocab_size)


def tokenise(recipe: Recipe, tokenizer: Tokenizer) -> TokenisedCorpus:
    """Encode a recipe's documents; every n-th is kept for validation.

    Raises:
        DataError: there are too few documents to keep any for validation.
    """
    every = max(2, round(1 / recipe.data.validation_fraction))
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    count = validation_bytes = 0
    total = None if recipe.data.sources else recipe.data.documents
    with progress(total, "encoding the corpus, documents") as bar:
        for texts in _batched(recipe_documents(recipe), ENCODED_AT_ONCE):
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                held_out = count % every == every - 1
                parts[held_out].append(torch.tensor([*tokenizer.beginning, *ids], dtype=torch.int32))
                validation_bytes += len(text.encode()) if held_out else 0
                count += 1
            bar.advance(len(texts))
    parts[False].extend(torch.tensor(ids, dtype=torch.int32) for ids in _dialogues(recipe, tokenizer))
    if sum(map(len, parts[True])) < SMALLEST_VALIDATION:
        raise DataError(
            f"{count} documents are too few to keep one in {every} for validation (data.validation_fraction = "
            f"{recipe.data.validation_fraction}); give more text, in more files or lines"
        )
    train, validation = torch.cat(parts[False]), torch.cat(parts[True])
    return TokenisedCorpus(train, validation, CorpusFacts(count, len(train), len(validation), validation_bytes))


def _dialogues(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the conversations of a corpus that has some, as token ids: what RL without an SFT before it starts from."""
    tasks = [load_environment(name) for name in recipe.environments]
    count = round(recipe.data.dialogues * recipe.data.documents / max(len(tasks), 1))
    if count and not recipe.data.sources:
        chat, seed = ChatFormat(tokenizer), DIALOGUE_SEED + recipe.seed
        for ids, _ in traces(chat, tasks, count, levels=recipe.levels, seed=seed, hasty=HASTY):
            yield ids


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
