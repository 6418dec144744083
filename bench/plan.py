"""Is the plan right? `leanseek plan RECIPE` against the ledger of the run, decoding and prefill against the engine.

The machine is calibrated first, so nothing else may run on it meanwhile. The run is made anew in a folder of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rows import alternate, arguments, publish, repeats, row, seconds_of

# How far a plan may be off, as a share.
WITHIN = 0.15
PROMPT, REPLY, TEXTS = 64, 32, (4, 32, 256)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="laptop", help="name or path of a recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CONFIG_HOME"] = folder
        from leanseek.cost.rates import save_rates
        from leanseek.speed import measure_rates

        rates = measure_rates(repeats=1 if options.quick else 5)
        save_rates(rates)
        for name, planned, measure in engine_work(rates):
            samples = alternate({"actual": measure}, repeats(options))["actual"]
            publish("plan", row(name, "s", [planned], samples, less_is_better=True, within=WITHIN), options)
        if not options.quick:
            stages(options.recipe, Path(folder) / "run", options)


def engine_work(rates: object) -> list[tuple[str, float, Callable[[], float]]]:
    """Return decoding and prefill of the small model that the machine was calibrated with, at other sizes."""
    from leanseek.checkpoint.directory import empty_model
    from leanseek.cost.rates import Rates
    from leanseek.data.corpus import documents
    from leanseek.engine.pool import EnginePool
    from leanseek.engine.request import SamplingParams
    from leanseek.envs.environment import load_environment
    from leanseek.forecast import decode_seconds, prefill_seconds
    from leanseek.kernels.threads import share_out
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.tokens.tokenizer import Tokenizer

    assert isinstance(rates, Rates)
    config, workers = load_preset("laptop"), share_out(None, "cpu")
    tokenizer = Tokenizer.train(list(documents(0, 500, [load_environment("running_total")])), config.vocab_size)
    model = initialise(empty_model(config, dtype="float32"), 0).eval()

    def sampled(texts: int, tokens: int) -> Callable[[], float]:
        prompts = [[2 + (i + 7 * n) % 300 for i in range(PROMPT)] for n in range(texts)]

        def work() -> float:
            engine = EnginePool(model, tokenizer, workers=workers, max_batch=texts, max_context_tokens=PROMPT + REPLY)
            params = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
            return seconds_of(lambda: engine.generate(prompts, params))

        return work

    found: list[tuple[str, float, Callable[[], float]]] = []
    for texts in TEXTS:
        read = prefill_seconds(config, rates, texts, PROMPT)
        found.append((f"prefill, {texts} x {PROMPT}", read, sampled(texts, 1)))
        written = decode_seconds(config, rates, texts, PROMPT, REPLY - 1, REPLY - 1)
        found.append((f"{texts} x {PROMPT} in, {REPLY} out", read + written, sampled(texts, REPLY)))
    return found


def stages(recipe: str, folder: Path, options: object) -> None:
    """Make a run, which plans itself first, and publish each stage's row."""
    make = [sys.executable, "-m", "leanseek", "make", recipe, "--run", str(folder)]
    subprocess.run(make, check=True)
    from leanseek.cost.ledger import Ledger
    from leanseek.run import Run

    run = Run.open(folder)
    actual = Ledger(run.ledger_path, 0.0).totals()
    for stage, planned in run.summary["plan"].items():
        took = actual[stage]
        tokens = {"tokens_planned": planned["tokens"], "tokens_actual": took["tokens"]}
        sides = [planned["seconds"]], [took["seconds"]]
        found = row(f"{recipe}: {stage}", "s", *sides, less_is_better=True, within=WITHIN, **tokens)
        publish("plan", found, options)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
