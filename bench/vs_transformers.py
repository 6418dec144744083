"""Cached decoding: tokens/s of leanseek's engine against transformers' generate, on the same weights and prompts.

Decoding alone is timed on both sides: from the first sampled token to the last, so that reading the prompts counts
on neither. Both are greedy and go on after the end of sentence; the row says what share of the tokens is the same.
Each side uses whichever of its settings is the fastest in a short try before the measurement, the peer also of fp32 and
bf16 where our weights are not fp32: it has no int8 for CPUs.

    python bench/vs_transformers.py                                  # the laptop preset, fp32
    python bench/vs_transformers.py --shape 100m --weights bf16       # 105 M weights, of which 25 M work for a token
    python bench/vs_transformers.py --shape 100m --weights int8 --compile   # the peer compiled too
"""

from __future__ import annotations

import os
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
# Changes to the laptop preset.
SHAPES: dict[str, dict[str, int]] = {
    "laptop": {"max_position_embeddings": 4096},
    "100m": {
        "max_position_embeddings": 4096,
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1536,
        "moe_intermediate_size": 256,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "num_nextn_predict_layers": 0,
    },
}
# What may be chosen on the peer's side; the search changes one at a time and keeps what is faster.
PEER = {
    "attention": ["sdpa", "eager"],
    "experts": ["grouped_mm", "eager", "batched_mm"],
    "threads": [1, 2],
    "cache": [None, "static"],
    "dtype": ["float32"],
    "compiled": [False],
}
OURS = [(1, 1), (1, 2), (2, 1)]  # (engines, torch threads of each)


class Ours:
    """leanseek's engine, or one in each of several threads."""

    def __init__(self, folder: Path, weights: str) -> None:
        from leanseek.checkpoint.packed import open_model
        from leanseek.kernels.threads import keep_memory

        keep_memory()
        self.model = open_model(folder, weights)
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

    def __init__(self, folder: Path, dtypes: tuple[str, ...]) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.models = {
            dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval() for dtype in dtypes
        }
        self.compiled: dict[str, Any] = {}
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
        model = self.models[settings["dtype"]]
        model.set_attn_implementation(settings["attention"])
        model.set_experts_implementation(settings["experts"])
        plain = type(model).forward.__get__(model)
        model.forward = torch.compile(plain, dynamic=True) if settings["compiled"] else plain
        clock, ids = Clock(), torch.tensor(prompts)
        clock.times = []
        with torch.inference_mode():
            out = model.generate(
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


def fastest_of_peer(rate: Callable[..., float], prompt_tokens: int, may_be: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the peer's fastest settings, found by changing one at a time."""
    best = {name: choices[0] for name, choices in may_be.items()}
    record = rate(**best)
    for name, choices in may_be.items():
        for choice in choices[1:]:
            if choice == "batched_mm" and prompt_tokens > MOST_BATCHED:
                continue
            found = rate(**{**best, name: choice})
            if found > record:
                best, record = {**best, name: choice}, found
    return best


def make_model(folder: Path, shape: str, weights: str) -> None:
    """Save random weights of a shape; bf16 ones where they are to be that."""
    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise

    model = initialise(empty_model(load_preset("laptop").replace(**SHAPES[shape])), 0)
    save_model(model.bfloat16() if weights == "bf16" else model, folder)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="laptop", choices=tuple(SHAPES))
    parser.add_argument("--weights", default="fp32", choices=("fp32", "bf16", "int8"), help="of our side")
    parser.add_argument("--compile", action="store_true", help="try the peer compiled as well: minutes more")
    options = parser.parse_args()
    laptop = (options.shape, options.weights) == ("laptop", "fp32")
    name = "" if laptop else f"{options.shape}, {options.weights}: "
    may_be = {**PEER, "compiled": [False, True] if options.compile else [False]}
    if options.weights != "fp32":
        may_be["dtype"] = ["float32", "bfloat16"]
    warnings.filterwarnings("ignore")
    works = [(1, 16, 4, 3), (3, 16, 4, 3)] if options.quick else WORKS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, options.shape, options.weights)
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        ours, peer = Ours(folder, options.weights), Peer(folder, tuple(may_be["dtype"]))
        for batch, context, count, target in works:
            target = target if laptop else 5
            work = f"{name}decoding, batch {batch}, context {context:,}"
            if options.only not in work:
                continue
            rng = random.Random(batch * context)
            prompts = [[rng.randrange(2, 512) for _ in range(context)] for _ in range(batch)]
            short = max(4, count // 4)
            tried = {c: ours.rate(prompts, short, *c) for c in OURS if c[0] <= batch}
            engines, threads = max(tried, key=lambda c: tried[c])
            settings = fastest_of_peer(
                lambda **s: peer.rate(prompts, short, **s),  # noqa: B023
                batch * context,
                may_be,
            )
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
                model=f"{options.shape}, random weights, {options.weights}",
                tokens_each=count,
                our_settings={"engines": engines, "threads": threads},
                peer_settings={**settings, "cache": settings["cache"] or "dynamic"},
                same_tokens=round(statistics.mean(a == b for a, b in pairs), 4),
            )
            publish("vs_transformers", found, options, target)


if __name__ == "__main__":
    sys.exit(main())
