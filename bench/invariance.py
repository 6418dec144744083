"""What batch invariance costs: tokens a second of the engine with it against without, by requests at once."""

from __future__ import annotations

import time

from rows import alternate, arguments, publish, repeats, row

STREAMS = (1, 8, 32)
PROMPT_TOKENS = 128
TOKENS = 64


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch

    from leanseek.engine.engine import Engine
    from leanseek.engine.request import SamplingParams
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.model.transformer import Transformer

    torch.set_num_threads(1)
    config = load_preset("laptop")
    model = Transformer(config)
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens = 8 if options.quick else TOKENS
    reading, drawing = SamplingParams(max_tokens=1, seed=0), SamplingParams(max_tokens=tokens, seed=0, ignore_eos=True)
    for streams in STREAMS[:1] if options.quick else STREAMS:
        kinds = {
            f"laptop, {streams} at once, drawing {tokens} tokens after {PROMPT_TOKENS}": drawing,
            f"laptop, {streams} at once, reading {PROMPT_TOKENS} tokens": reading,
        }
        for kind, params in kinds.items():
            work = f"{kind}, invariant against not"
            if options.only not in work:
                continue

            def rate(invariant: bool, streams=streams, params=params) -> float:
                engine = Engine(model, max_batch=streams, cache_bytes=1 << 26, invariant=invariant)
                # New prompts each time: nothing is found again.
                shape = (streams, PROMPT_TOKENS)
                prompts = torch.randint(3, config.vocab_size, shape, generator=generator).tolist()
                start_s = time.perf_counter()
                outputs = engine.generate(prompts, params)
                seconds = time.perf_counter() - start_s
                read = streams * PROMPT_TOKENS if params is reading else 0
                return (read + sum(len(output.token_ids) for output in outputs)) / seconds

            sides = {"ours": lambda r=rate: r(True), "peer": lambda r=rate: r(False)}
            alternate(sides, 1)
            found = alternate(sides, repeats(options))
            publish("invariance", row(work, "tokens/s", found["ours"], found["peer"]), options)


if __name__ == "__main__":
    main()
