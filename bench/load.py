"""Load: what 1, 4, 16 and 64 clients get at once, against transformers serve; and what is left of it at ten times more.

Each client asks, reads the stream to its end, waits for a while (exponentially distributed, so that arrivals are
Poisson's) and asks again. The servers have one torch thread each, the same folder and the same prompts; tokens are
greedy. Random weights: what is said does not matter, and hardly any reply ends early. The peer batches continuously;
as its paged cache takes keys and values to be of one width, it fails on a DeepSeek model (transformers 5.23:
docs/log.md). So the two are compared on a dense model (Qwen 3's architecture), and the DeepSeek model stands alone.
Ours is measured twice: as it is by default, with the same bits in any company, and with --fast, which promises as
little as the peer does.

Tokens are those of answers that came to their full length in time. Time to the first piece of text and between pieces
is what the client sees, in milliseconds; the peer sends a piece a word, ours one a token.

The overload row: ten times as many requests a second as are answered at saturation, against that saturation itself.

A piece of work (--only "qwen3, 16 ", --only overload) takes about two minutes.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from clients import WORDS, Clients, Seen
from process import free_port, leanseek, running
from rows import alternate, arguments, publish, repeats, row

CLIENTS = (1, 4, 16, 64)
TOKENS = 32
PAUSE_S = 0.25
SECONDS = 4.0
MOST_REQUESTS = 128  # at the overload: two batches
OVERLOAD = 10
CONTEXT_TOKENS = 2048
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_folder(folder: Path, kind: str) -> None:
    """Save random weights of the laptop preset or of a dense model of its size, and a tokenizer."""
    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.model.config import ModelConfig, load_preset
    from leanseek.model.initialise import initialise
    from leanseek.tokens.tokenizer import Tokenizer

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=12)) + f" {rng.randrange(1000)}\n" for _ in range(500)]
    tokenizer = Tokenizer.train(texts, 512)
    shape = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": CONTEXT_TOKENS}
    preset = load_preset("laptop").replace(**shape)
    ends = {"bos_token_id": preset.bos_token_id, "eos_token_id": preset.eos_token_id}
    config = preset if kind == "deepseek" else ModelConfig.from_dict({**QWEN, **shape, **ends})
    save_model(initialise(empty_model(config), 0), folder, tokenizer)


@contextmanager
def peer(folder: Path, log: Path | None) -> Iterator[str]:
    """Serve a folder by transformers."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", folder, "--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    with running([*command, "--port", str(port)], f"{url}/health", log):
        yield url


def compare(kind: str, clients: int, folder: Path, options: Any, log: Path | None) -> None:
    """Measure a number of clients."""
    work = f"{kind}, {clients} Poisson clients, {TOKENS} tokens each, laptop size, random weights"
    seconds = 2.0 if options.quick else SECONDS
    last: dict[str, list[Seen]] = {}

    def rate(name: str, url: str, model: str) -> float:
        mine = last.setdefault(name, [])
        seen = Clients(url, model, len(mine), TOKENS).closed(clients, seconds, PAUSE_S)
        mine.append(seen)
        if not seen.answers or (seen.wrong and name != "peer"):
            raise SystemExit(f"{name}: {seen.wrong} requests failed, {seen.answers} were answered; see {log}")
        return seen.rate

    with ExitStack() as opened:
        ours = opened.enter_context(leanseek(folder, "--max-batch", "64", log=log and log.with_suffix(".ours")))
        sides = {"ours": lambda: rate("ours", ours, "model")}
        if kind != "deepseek":
            quick = opened.enter_context(leanseek(folder, "--max-batch", "64", "--fast"))
            theirs = opened.enter_context(peer(folder, log))
            sides |= {"fast": lambda: rate("fast", quick, "model"), "peer": lambda: rate("peer", theirs, str(folder))}
        alternate(sides, 1)  # to warm up
        last.clear()
        found = alternate(sides, repeats(options))

    def told(name: str, work: str) -> None:
        sides = {"ours": name, "peer": "peer"} if "peer" in found else {"ours": name}
        publish(
            "load",
            row(
                work,
                "tokens/s",
                found[name],
                found.get("peer", ()),
                packages=("torch", "transformers") if "peer" in found else ("torch",),
                latency={side: _latency(last[one]) for side, one in sides.items()},
                broken=sum(seen.wrong for seen in last.get("peer", ())),
            ),
            options,
        )

    told("ours", work)
    if "fast" in found:
        told("fast", f"{work}, --fast")


def _latency(runs: Sequence[Seen]) -> dict[str, float]:
    """Return the median over the runs of each percentile."""
    return {key: statistics.median(one.figures()[key] for one in runs) for key in runs[0].figures()}


def overload(folder: Path, options: Any, log: Path | None) -> None:
    """Measure what is left of the capacity at ten times as many requests."""
    work = f"deepseek, {OVERLOAD} times the requests that can be answered, against as many as can"
    seconds = 3.0 if options.quick else SECONDS
    refused: list[float] = []
    with leanseek(folder, "--max-batch", "64", "--max-requests", str(MOST_REQUESTS), log=log) as url:
        Clients(url, "model", 0, TOKENS).closed(MOST_REQUESTS, 1.0, 0.0)
        per_second = 0.0

        def full() -> float:
            nonlocal per_second
            seen = Clients(url, "model", len(refused), TOKENS).closed(MOST_REQUESTS, seconds, 0.0)
            per_second = seen.rate / TOKENS
            return seen.rate

        def over() -> float:
            seen = Clients(url, "model", 1000 + len(refused), TOKENS).opened(OVERLOAD * per_second, seconds)
            if seen.wrong:
                raise SystemExit(f"{seen.wrong} requests were answered neither whole nor by 429")
            refused.append(seen.refused / (seen.refused + seen.answers))
            return seen.rate

        found = alternate({"peer": full, "ours": over}, repeats(options))
    figures = row(work, "tokens/s", found["ours"], found["peer"], refused=[round(one, 4) for one in refused])
    publish("load", figures, options, 0.9)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--log", type=Path, help="file for what the servers say")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folders = {kind: Path(place) / kind for kind in ("qwen3", "deepseek")}
        for kind, folder in folders.items():
            make_folder(folder, kind)
        for kind, folder in folders.items():
            for clients in CLIENTS:
                if options.only in f"{kind}, {clients} ":
                    compare(kind, clients, folder, options, options.log)
        if options.only in "overload":
            overload(folders["deepseek"], options, options.log)


if __name__ == "__main__":
    main()
