"""DPO stage: a model learns which of two replies is better, from the user's own pairs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from leanseek.checkpoint.directory import load_model
from leanseek.data.dialogues import examples_of, set_aside
from leanseek.data.preferences import read_preferences
from leanseek.data.traces import TraceBatches
from leanseek.files import write_json
from leanseek.log import progress, say
from leanseek.model.count import forward_parts
from leanseek.model.transformer import Transformer
from leanseek.sections.tuning import DpoSettings
from leanseek.tokens.chat import ChatFormat
from leanseek.train.lora import optimiser_of
from leanseek.train.objectives.preference import Dpo, Pair, PairBatch, reply_logprobs
from leanseek.train.stage import Stage
from leanseek.train.tune import longest_of, steps_of, unchanged


def dpo(stage: Stage) -> dict[str, Any]:
    """Make better replies likelier against worse ones; return the stage's figures.

    Args:
        stage: of a run, of kind dpo; its settings have `data`.
    Raises:
        DataError: a line that cannot be learnt from.
        RunError: the file has changed since the stage began.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, DpoSettings)
    assert settings.data is not None, "checked before any stage is made"
    given = read_preferences(settings.data)
    unchanged(stage, settings.data, len(given))
    chat, longest, cut = ChatFormat(stage.tokenizer), longest_of(stage, settings), settings.too_long == "cut"
    chosen, rejected = (
        examples_of(side, chat, longest, cut=cut, last=True)
        for side in ([one.chosen for one in given], [one.rejected for one in given])
    )
    model = stage.model()
    pairs = _with_reference(stage, model, [Pair(*both) for both in zip(chosen, rejected, strict=True)], settings)
    taught, aside = set_aside(pairs, settings.held_out, recipe.seed)
    order = TraceBatches([one.chosen for one in taught], settings.batch_sequences, recipe.seed)
    steps = steps_of(settings, order.batches_per_pass)
    objective = Dpo(settings.beta, settings.label_smoothing, settings.most_logits)
    most = settings.batch_sequences
    held_out = [PairBatch(aside[at : at + most]) for at in range(0, len(aside), most)]

    def batch(step: int) -> PairBatch:
        return PairBatch([taught[place] for place in order.places(step)])

    @torch.no_grad()
    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        for whole in held_out:
            for part, share in whole.to(recipe.device).pieces(1, settings.micro_tokens):
                for name, value in objective(model, part).metrics.items():
                    weighted = value * share * len(whole.pairs) / len(aside)
                    found[f"validation_{name}"] = found.get(f"validation_{name}", 0.0) + weighted
        return found

    optimiser = optimiser_of(settings, recipe.seed)
    hooks = {"validate": validate} if aside else {}
    trainer = stage.fit(model, objective, batch, hooks, optimiser, steps=steps)
    after = validate()
    if after:
        say(f"  told apart rightly: {after['validation_preferred']:.1%} of {len(aside)} pairs that no step has seen")
    figures = {"pairs": len(taught), "held_out": len(aside), "passes": trainer.done / order.batches_per_pass}
    return {"steps": trainer.done, **figures, **after}


def _with_reference(stage: Stage, model: Transformer, pairs: Sequence[Pair], settings: DpoSettings) -> list[Pair]:
    """Return pairs with what the stage's first model thinks of them, computed once and kept in the run folder."""
    path = stage.run.folder / "reference" / f"{stage.name}.json"
    digest = hashlib.sha256(json.dumps([(one.chosen, one.rejected) for one in pairs]).encode()).hexdigest()
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("sha256") != digest:
        first = stage.before()
        if first is not None and stage.newest() is not None:
            model = load_model(first, dtype=stage.run.recipe.dtype, device=stage.run.recipe.device)
        known = {"sha256": digest, "logprobs": _logprobs(stage, model.eval(), pairs, settings)}
        path.parent.mkdir(exist_ok=True)
        write_json(path, known)
    return [
        replace(one, reference_chosen=better, reference_rejected=worse)
        for one, (better, worse) in zip(pairs, known["logprobs"], strict=True)
    ]


@torch.no_grad()
def _logprobs(stage: Stage, model: Transformer, pairs: Sequence[Pair], settings: DpoSettings) -> list[list[float]]:
    found: list[list[float]] = []
    most = settings.batch_sequences
    with progress(math.ceil(len(pairs) / most), f"{stage.name}, reference") as bar:
        for at in range(0, len(pairs), most):
            packed = PairBatch(pairs[at : at + most], {}, model.device).packed
            found += reply_logprobs(model, packed, settings.most_logits).view(-1, 2).tolist()
            read = {"tokens": packed.segments.tokens, "pairs": packed.segments.pairs, "head_tokens": packed.learnt}
            stage.meter.tokens += packed.segments.tokens
            for part, flops in forward_parts(model.config, **read).items():
                stage.meter.add_flops(flops, part=part)
            bar.advance()
    return found
