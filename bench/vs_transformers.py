"""Cached decoding: tokens/s of leanseek's engine against transformers' generate, on the same weights and prompts.

Decoding alone is timed on both sides: from the first sampled token to the last, so that reading the prompts counts
on neither. Both are greedy and go on after the end of sentence; the row says what share of the tokens is the same.
Each side uses whichever of its settings is the fastest in a short try before the measurement.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import alternate, arguments, publish, repeats, row

# (batch, prompt tokens, tokens generated, ratio to reach)
WORKS = [(1, 128, 64, 3), (8, 128, 64, 3), (64, 128, 64, 3), (1, 1024, 64, 5), (8, 1024, 64, 5), (64, 1024, 32, 5)]
# What may be chosen on the peer's side; the search changes one at a time and keeps what is faster.
PEER = {
    "attention": ["sdpa", "eager"],
    "experts": ["grouped_mm", "eager", "batched_mm"],
    "threads": [1, 2],
    "cache": [None, "static"],
}
OURS = [(1, 1), (1, 2), (2, 1)]  # (engines, torch threads of each)


class Ours:
    """leanseek's engine, or one in each of several threads."""

    def __init__(self, folder: Path) -> None:
        from leanseek.checkpoint.directory import load_model
        from leanseek.kernels.threads import keep_memory

        keep_memory()
        self.model = load_model(folder)
        self.tokens: list[list[int]] = []

    def rate(self, prompts: list[list[int]], count: int, engines: int, threads: int) -> float:
        """Decode `count` tokens for each prompt; return tokens/s after the first ones."""
        import torch

        from leanseek.engine.engine import Engine
        from leanseek.engine.request import SamplingParams
        from leanseek.kernels.threads import run_all

        torch.set_num_threads(threads)
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        context, rows = len(prompts[0]) + count, -(-len(prompts) // engines)
        made = [Engine(self.model, max_batch=rows, max_context_tokens=context) for _ in range(engines)]
        ready, times = threading.Barrier(engines), []
        replies: dict[int, list[int]] = {i: [] for i in range(len(prompts))}

        def work(number: int) -> None:
            engine, mine = made[number], range(number, len(prompts), engines)
            for i in mine:
                engine.add(prompts[i], params, str(i))
            first = 0
            while first < len(mine):
                for event in engine.step():
                    replies[int(event.request_id)].append(event.token_id)
                    first += 1
            ready.wait()
            start_s = time.perf_counter()
            while engine.has_work:
                for event in engine.step():
                    replies[int(event.request_id)].append(event.token_id)
            times.append((start_s, time.perf_counter()))

        run_all([lambda number=number: work(number) for number in range(engines)])
        self.tokens = [replies[i] for i in range(len(prompts))]
        assert all(len(reply) == count for reply in self.tokens)
        return len(prompts) * (count - 1) / (max(end for _, end in times) - min(start for start, _ in times))


class Peer:
    """transformers' generate."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokens: list[list[int]] = []

    def rate(self, prompts: list[list[int]], count: int, **settings: Any) -> float:
        """Decode `count` tokens for each prompt; return tokens/s after the first ones."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Clock(StoppingCriteria):
            times: list[float] = []

            def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
                self.times.append(time.perf_counter())
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        torch.set_num_threads(settings["threads"])
        self.model.set_attn_implementation(settings["attention"])
        self.model.set_experts_implementation(settings["experts"])
        clock, ids = Clock(), torch.tensor(prompts)
        clock.times = []
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                use_cache=True,
                cache_implementation=settings["cache"],
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        self.tokens = out[:, ids.shape[1] :].tolist()
        assert all(len(reply) == count for reply in self.tokens) and len(clock.times) == count
        return len(prompts) * (count - 1) / (clock.times[-1] - clock.times[0])


# Tokens of the prompts beyond which the peer's batched_mm is not tried: it copies the weights of every token's
# experts, 0.4 MB a token here, and 64 x 1,024 tokens would take more memory than a laptop has.
MOST_BATCHED = 16_384


def fastest_of_peer(rate: Callable[..., float], prompt_tokens: int) -> dict[str, Any]:
    """Return the peer's fastest settings, found by changing one at a time."""
    best = {name: choices[0] for name, choices in PEER.items()}
    record = rate(**best)
    for name, choices in PEER.items():
        for choice in choices[1:]:
            if choice == "batched_mm" and prompt_tokens > MOST_BATCHED:
                continue
            found = rate(**{**best, name: choice})
            if found > record:
                best, record = {**best, name: choice}, found
    return best


def make_model(folder: Path) -> None:
    """Save random weights of the laptop preset, with a context of 4,096 tokens."""
    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise

    config = load_preset("laptop").replace(max_position_embeddings=4096)
    save_model(initialise(empty_model(config), 0), folder)


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    warnings.filterwarnings("ignore")
    works = [(1, 16, 4, 3), (3, 16, 4, 3)] if options.quick else WORKS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder)
        ours, peer = Ours(folder), Peer(folder)
        for batch, context, count, target in works:
            work = f"decoding, batch {batch}, context {context:,}"
            if options.only not in work:
                continue
            rng = random.Random(batch * context)
            prompts = [[rng.randrange(2, 512) for _ in range(context)] for _ in range(batch)]
            short = max(4, count // 4)
            tried = {c: ours.rate(prompts, short, *c) for c in OURS if c[0] <= batch}
            engines, threads = max(tried, key=lambda c: tried[c])
            settings = fastest_of_peer(lambda **s: peer.rate(prompts, short, **s), batch * context)  # noqa: B023
            samples = alternate(
                {
                    "ours": lambda: ours.rate(prompts, count, engines, threads),  # noqa: B023
                    "peer": lambda: peer.rate(prompts, count, **settings),  # noqa: B023
                },
                repeats(options),
            )
            replies = zip(ours.tokens, peer.tokens, strict=True)
            pairs = [pair for one, two in replies for pair in zip(one, two, strict=True)]
            found = row(
                work,
                "tokens/s",
                samples["ours"],
                samples["peer"],
                packages=("torch", "transformers"),
                model="laptop preset, random weights, fp32",
                tokens_each=count,
                our_settings={"engines": engines, "threads": threads},
                peer_settings={**settings, "cache": settings["cache"] or "dynamic"},
                same_tokens=round(statistics.mean(a == b for a, b in pairs), 4),
            )
            publish("vs_transformers", found, options, target)


if __name__ == "__main__":
    sys.exit(main())
