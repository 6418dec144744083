"""`leanseek data`: bytes of text a second against the tokenizers library's own batches, and memory at two sizes.

The text is Python's own library, its lines in another order in each round, as a .jsonl file. The peer encodes documents
that are in memory already, in batches as large as ours, and does nothing with the ids; ours reads the file, parses
it, hashes it, encodes, and writes shards. Both use all cores. Memory is the peak of a process of its own, all in.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rows import ROOT, alternate, arguments, publish, repeats, row, seconds_of

VOCABULARY = 32_768
MB = 1 << 20


def documents(megabytes: float) -> Iterator[str]:
    """Yield that much text, the same each time."""
    rng, left = random.Random(0), int(megabytes * MB)
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    texts = [p.read_text(encoding="utf-8", errors="replace") for p in library if "site-packages" not in p.parts]
    while left > 0:
        for text in texts:
            lines = text.splitlines()
            rng.shuffle(lines)
            shuffled = "\n".join(lines)[:left]
            if shuffled.strip():
                yield shuffled
            left -= len(shuffled)
            if left <= 0:
                return


def write(path: Path, megabytes: float) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in documents(megabytes):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def rate(options: argparse.Namespace, folder: Path) -> None:
    """Publish the row of the rate."""
    from tokenizers import Tokenizer as FastTokenizer

    from leanseek.data.preparation import BATCH_CHARACTERS, Preparation, Wishes
    from leanseek.tokens.tokenizer import Tokenizer

    megabytes = 2 if options.quick else 48
    texts = list(documents(megabytes))
    source = folder / "text.jsonl"
    write(source, megabytes)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    fast = FastTokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    batches: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, batches[-1])) >= BATCH_CHARACTERS:
            batches.append([])
        batches[-1].append(text)
    size, count = sum(len(text.encode()) for text in texts), 0

    def ours() -> float:
        nonlocal count
        count += 1
        preparation = Preparation(
            [str(source)], folder / f"shards-{count}", tokenizer, Wishes(validation_fraction=0.02)
        )
        return size / seconds_of(preparation.run)

    def peer() -> float:
        return size / seconds_of(lambda: [fast.encode_batch_fast(batch, add_special_tokens=False) for batch in batches])

    samples = alternate({"ours": ours, "peer": peer}, repeats(options))
    publish(
        "data",
        row(
            f"text to shards, {megabytes} MB of Python",
            "bytes/s",
            samples["ours"],
            samples["peer"],
            packages=("tokenizers",),
            vocabulary=tokenizer.vocab_size,
        ),
        options,
        0.8,
    )


def memory(megabytes: float, options: argparse.Namespace, folder: Path) -> None:
    """Publish the row of one size's memory."""
    source, to = folder / "much.jsonl", folder / f"shards-of-{megabytes:g}"
    write(source, megabytes)
    command = [sys.executable, "-m", "leanseek", "data", str(source), "--to", str(to)]
    child = subprocess.Popen(
        [*command, "--tokenizer", str(folder / "tokenizer"), "--filter", "--validation", "0.02"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    size = source.stat().st_size
    source.unlink()
    publish(
        "data",
        row(
            f"peak memory of leanseek data, {megabytes:,g} MB of text",
            "bytes",
            [used.ru_maxrss * 1024],
            [1 << 30],
            packages=("tokenizers",),
            less_is_better=True,
            file_bytes=size,
        ),
        options,
    )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[64, 512], help="sizes whose memory is measured")
    options = parser.parse_args()
    from leanseek.tokens.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Tokenizer.train(documents(1 if options.quick else 8), VOCABULARY).save(folder / "tokenizer")
        if options.only in "rate":
            rate(options, folder)
        if options.only in "memory":
            for megabytes in [2] if options.quick else options.megabytes:
                memory(megabytes, options, folder)


if __name__ == "__main__":
    main()
