"""Speculation with the MTP layer: tokens a second with drafts against without, at one and at four streams."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from rows import alternate, arguments, publish, repeats, row

STREAMS = (1, 4)
DRAFTS = (1, 2)
TOKENS = 48
ROUNDS = 8


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=Path("runs/laptop"), help="a run or model folder")
    options = parser.parse_args()
    import torch

    from leanseek.checkpoint.directory import load_model
    from leanseek.engine.engine import Engine
    from leanseek.engine.request import SamplingParams
    from leanseek.engine.speculative import Gain
    from leanseek.envs.environment import load_environment
    from leanseek.messages import Message
    from leanseek.run import model_folder
    from leanseek.tokens.tokenizer import Tokenizer

    torch.set_num_threads(1)
    folder = model_folder(options.model)
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    problems = load_environment("running_total").problems("test", 0)
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)

    class Always(Gain):
        """Speculates in every step, so that what it costs shows too."""

        def pays(self, rows: int) -> bool:
            return True

    def engine_of(drafts: int, gain: Gain) -> Engine:
        engine = Engine(model, tokenizer, max_batch=max(STREAMS), cache_bytes=1 << 28, drafts=drafts)
        engine._gain = gain
        return engine

    for streams, drafts in itertools.product(STREAMS, DRAFTS):
        engines = {
            "ours": engine_of(drafts, Always()),
            "peer": engine_of(0, Gain()),
            "auto": engine_of(drafts, Gain()),
        }
        prompts = [
            engines["ours"].chat.prompt([Message("user", next(problems).prompt)])
            for _ in range(streams * (1 if options.quick else ROUNDS))
        ]

        def rate(engine: Engine, prompts=prompts, streams=streams) -> float:
            start_s, tokens = time.perf_counter(), 0
            for at in range(0, len(prompts), streams):
                tokens += sum(len(o.token_ids) for o in engine.generate(prompts[at : at + streams], params))
            return tokens / (time.perf_counter() - start_s)

        sides = {name: (lambda e=engine: rate(e)) for name, engine in engines.items()}
        alternate(sides, 1)
        found = alternate(sides, repeats(options))
        speculation = engines["ours"].speculation
        work = f"{folder.parents[1].name}, {streams} streams, {drafts} drafts, greedy, against plain decoding"
        figures = row(
            work,
            "tokens/s",
            found["ours"],
            found["peer"],
            acceptance=round(speculation.accepted / speculation.drafted, 4),
            where_it_pays=[round(x, 1) for x in found["auto"]],
        )
        publish("speculative", figures, options)


if __name__ == "__main__":
    main()
