"""Load: what 1, 4, 16 and 64 clients get at once, against transformers serve; and what is left of it at ten times more.

Each client asks, reads the stream to its end, waits for a while (exponentially distributed, so that arrivals are
Poisson's) and asks again. Both servers have one torch thread, the same folder and the same prompts; tokens are
greedy. Random weights: what is said does not matter, and hardly any reply ends early. The peer batches continuously;
as its paged cache takes keys and values to be of one width, it fails on a DeepSeek model (transformers 5.23:
docs/log.md). So the two are compared on a dense model (Qwen 3's architecture), and the DeepSeek model stands alone.
Tokens are those of answers that came to their full length in time. Time to the first piece of text and between pieces
is what the client sees, in milliseconds; the peer sends a piece a word, ours one a token.

The overload row: ten times as many requests a second as are answered at saturation, against that saturation itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from process import free_port, leanseek, running
from rows import alternate, arguments, publish, repeats, row

CLIENTS = (1, 4, 16, 64)
TOKENS = 32
PAUSE_S = 0.25
SECONDS = 4.0
MOST_REQUESTS = 128  # at the overload: two batches
OVERLOAD = 10
CONTEXT_TOKENS = 2048
WORDS = "start total largest number where right left line step think answer the a of and".split()
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@dataclass
class Seen:
    """What the clients saw."""

    tokens: int = 0
    answers: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    between_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def figures(self) -> dict[str, float]:
        """Return the percentiles."""
        return {
            f"{name}_p{share}_ms": round(_percentile(values, share / 100), 2)
            for name, values in (("first", self.first_ms), ("between", self.between_ms))
            for share in (50, 99)
        }


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


class Clients:
    """Asks a server.

    Args:
        url: of the server.
        model: what it calls the model.
        seed: of prompts and pauses.
    """

    def __init__(self, url: str, model: str, seed: int) -> None:
        self._url, self._model, self._rng = url, model, random.Random(seed)
        self.seen = Seen()

    def closed(self, clients: int, seconds: float, pause_s: float = PAUSE_S) -> Seen:
        """Let so many clients ask again and again."""
        return asyncio.run(self._run([lambda end_s: self._client(end_s, pause_s) for _ in range(clients)], seconds))

    def opened(self, per_second: float, seconds: float) -> Seen:
        """Send so many requests a second, whatever becomes of them."""
        return asyncio.run(self._run([lambda end_s: self._arrivals(end_s, per_second)], seconds))

    async def _run(self, each: list[Any], seconds: float) -> Seen:
        import httpx2

        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=300, limits=limits, trust_env=False) as self._http:
            self.seen, start_s = Seen(), time.perf_counter()
            self._end_s = start_s + seconds
            await asyncio.gather(*(one(self._end_s) for one in each))
            self.seen.seconds = seconds
        return self.seen

    async def _client(self, end_s: float, pause_s: float) -> None:
        await asyncio.sleep(self._rng.random() * pause_s)
        while time.perf_counter() < end_s:
            await self._ask()
            if pause_s:
                await asyncio.sleep(self._rng.expovariate(1 / pause_s))

    async def _arrivals(self, end_s: float, per_second: float) -> None:
        asked = []
        while time.perf_counter() < end_s:
            asked.append(asyncio.create_task(self._ask()))
            await asyncio.sleep(self._rng.expovariate(per_second))
        await asyncio.gather(*asked)

    async def _ask(self) -> None:
        import httpx2

        try:
            await self._answer()
        except httpx2.TransportError:  # a stream that breaks off, as the peer's sometimes do
            self.seen.wrong += 1

    async def _answer(self) -> None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": " ".join(self._rng.choices(WORDS, k=24))}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
        }
        last_s = time.perf_counter()
        times: list[float] = []
        whole = False
        async with self._http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                self.seen.refused += answer.status_code == 429
                self.seen.wrong += answer.status_code != 429
                await answer.aread()
                return
            async for line in answer.aiter_lines():
                chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
                whole |= any(one.get("finish_reason") == "length" for one in chunk.get("choices") or ())
                if _says(chunk):
                    now_s = time.perf_counter()
                    times.append(now_s - last_s)
                    last_s = now_s
        # Chunks are no measure of tokens: the peer keeps text back until a word is whole. What comes after the end
        # belongs to no second that is counted.
        if whole and time.perf_counter() < self._end_s:
            self.seen.tokens += TOKENS
        if times:
            self.seen.answers += 1
            self.seen.first_ms.append(1000 * times[0])
            self.seen.between_ms += [1000 * one for one in times[1:]]


def _says(chunk: dict[str, Any]) -> bool:
    """Whether a chunk says something."""
    return any(
        one["delta"].get("content") or one["delta"].get("reasoning_content") for one in chunk.get("choices") or ()
    )


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


def compare(kind: str, folder: Path, options: Any, log: Path | None) -> None:
    """Measure each number of clients."""
    seconds = 2.0 if options.quick else SECONDS
    for clients in CLIENTS:
        work = f"{kind}, {clients} Poisson clients, {TOKENS} tokens each, laptop size, random weights"
        if options.only not in work:
            continue
        last: dict[str, list[Seen]] = {"ours": [], "peer": []}

        def rate(name: str, url: str, model: str, clients: int = clients, last: dict[str, list[Seen]] = last) -> float:
            seen = Clients(url, model, len(last[name])).closed(clients, seconds)
            last[name].append(seen)
            if not seen.answers or (seen.wrong and name == "ours"):
                raise SystemExit(f"{name}: {seen.wrong} requests failed, {seen.answers} were answered; see {log}")
            return seen.rate

        with leanseek(folder, "--max-batch", "64", log=log and log.with_suffix(".ours")) as ours:
            sides = {"ours": lambda url=ours: rate("ours", url, "model")}
            if kind == "deepseek":
                sides["ours"]()
                last["ours"].clear()
                found = alternate(sides, repeats(options))
            else:
                with peer(folder, log) as theirs:
                    sides["peer"] = lambda url=theirs: rate("peer", url, str(folder))
                    alternate(sides, 1)
                    for seen in last.values():
                        seen.clear()
                    found = alternate(sides, repeats(options))
        figures = {
            name: {key: statistics.median(one.figures()[key] for one in seen) for key in seen[0].figures()}
            for name, seen in last.items()
            if seen
        }
        broken = sum(one.wrong for one in last["peer"])
        packages = ("torch", "transformers") if kind != "deepseek" else ("torch",)
        mine, theirs = found["ours"], found.get("peer", ())
        publish("load", row(work, "tokens/s", mine, theirs, packages=packages, latency=figures, broken=broken), options)


def overload(folder: Path, options: Any, log: Path | None) -> None:
    """Measure what is left of the capacity at ten times as many requests."""
    work = f"deepseek, {OVERLOAD} times the requests that can be answered, against as many as can"
    if options.only not in work:
        return
    seconds = 3.0 if options.quick else SECONDS
    refused: list[float] = []
    with leanseek(folder, "--max-batch", "64", "--max-requests", str(MOST_REQUESTS), log=log) as url:
        Clients(url, "model", 0).closed(MOST_REQUESTS, 1.0, 0.0)
        per_second = 0.0

        def full() -> float:
            nonlocal per_second
            seen = Clients(url, "model", len(refused)).closed(MOST_REQUESTS, seconds, 0.0)
            per_second = seen.rate / TOKENS
            return seen.rate

        def over() -> float:
            seen = Clients(url, "model", 1000 + len(refused)).opened(OVERLOAD * per_second, seconds)
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
            compare(kind, folder, options, options.log)
        overload(folders["deepseek"], options, options.log)


if __name__ == "__main__":
    main()
