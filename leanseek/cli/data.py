"""leanseek data: text of any size, made into shards of tokens that pretraining reads by memory map."""

from __future__ import annotations

import json as json_format
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leanseek.errors import UsageError
from leanseek.units import format_bytes, format_count, parse_count

# What a tokenizer is learnt from at the most.
TOKENIZER_CHARACTERS = 50_000_000


def data(
    *sources: str,
    to: Path,
    tokenizer: Path | None = None,
    vocab_size: int = 32_768,
    validation: float = 0.005,
    filter: bool = False,
    deduplicate: bool = False,
    fim: float = 0.0,
    seed: int = 0,
    license: str | None = None,
    shard_tokens: str = "16M",
    cluster: str | None = None,
    json: bool = False,
) -> None:
    """Turn text into token shards: streaming, in bounded memory, the same files whoever makes them.

    Read are .txt files (a document each), .jsonl files (a "text" in each line), .parquet files (a column text) and
    datasets (datasets:NAME:SPLIT, or a folder that the library saved). Stopped, by Ctrl-C or otherwise, it goes on
    where it was when the same command is run again. A recipe takes the outcome by --data.shards FOLDER.

    Example: leanseek data my-texts --to shards --filter --deduplicate --license CC-BY-4.0

    Args:
        sources: Files, folders, datasets:NAME.
        to: Folder of shards that is made.
        tokenizer: Model or tokenizer folder; without one, a tokenizer is learnt from the first documents.
        vocab_size: Tokens of a tokenizer that is learnt.
        validation: Share of documents kept for validation.
        filter: Leave out what is not worth learning from: too short, repetitive, mostly symbols.
        deduplicate: Leave out near duplicates, found by MinHash.
        fim: Share of documents turned into fill-in-the-middle examples (DeepSeek-V3: 0.1).
        seed: Of what is turned, and where.
        license: What the text may be used for, as its owner says; it goes into the model's card.
        shard_tokens: Tokens of one file, about.
        cluster: Read and encode by a Ray Data job: address of a Ray cluster, auto or local. The shards are the same.
        json: Print the index as JSON.
    """
    from leanseek.data.preparation import Preparation, Wishes
    from leanseek.log import progress, say

    if not sources:
        raise UsageError("leanseek data needs a file or a folder of text, such as: leanseek data my-texts --to shards")
    for name, value, most in (("validation", validation, 0.5), ("fim", fim, 1.0)):
        if not 0 <= value <= most or (name == "validation" and value == 0):
            raise UsageError(f"--{name} {value}: between 0 and {most} is accepted")
    wishes = Wishes(validation, filter, deduplicate, fim, seed, license, max(1, int(parse_count(shard_tokens))))
    encoder = _tokenizer(sources, tokenizer, vocab_size)
    with ExitStack() as stack:
        readers = None
        if cluster is not None:
            from leanseek.data.cluster import Cluster

            readers = Cluster(encoder, filter=filter, deduplicate=deduplicate, seed=seed, address=cluster)
            stack.callback(readers.close)
        preparation = Preparation(list(sources), to, encoder, wishes, readers)
        if preparation.begun:
            say(f"going on with {to}")
        bar = stack.enter_context(progress(preparation.total_bytes or None, "tokens, characters of text"))
        index = preparation.run(bar)
    print(json_format.dumps(index, indent=2, ensure_ascii=False) if json else _told(index, to))


def _tokenizer(sources: tuple[str, ...], folder: Path | None, vocab_size: int) -> Any:
    from leanseek.data.sources import read_documents
    from leanseek.errors import DataError
    from leanseek.log import say
    from leanseek.tokens.tokenizer import Tokenizer

    if folder is not None:
        return Tokenizer.load(folder)
    say("learning a tokenizer from the first documents")
    texts, size = [], 0
    for text in read_documents(sources):
        texts.append(text)
        size += len(text)
        if size >= TOKENIZER_CHARACTERS:
            break
    if not texts:
        raise DataError(f"{', '.join(sources)}: there is no text in it")
    return Tokenizer.train(texts, vocab_size)


def _told(index: dict[str, Any], to: Path) -> str:
    lines = []
    for source in index["sources"]:
        reasons = {k: v for k, v in source.items() if isinstance(v, int) and k not in ("bytes", "read", "kept")}
        left_out = "; left out: " + ", ".join(f"{n:,} {why}" for why, n in reasons.items()) if reasons else ""
        size = f", {format_bytes(source['bytes'])}" if source["bytes"] else ""
        kept = f"{source.get('kept', 0):,} of {source.get('read', 0):,} documents"
        lines.append(f"{source['source']}{size}: {kept}{left_out}")
    train, held = (format_count(index["tokens"][part]) for part in ("train", "validation"))
    lines.append(f"{to}: {train} tokens to train on, {held} to validate, {index['vocab_size']:,} in the vocabulary")
    lines.append(f"next: leanseek pretrain RECIPE --data.shards {to}")
    return "\n".join(lines)
