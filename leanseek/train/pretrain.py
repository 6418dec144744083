"""Pretraining: next-token prediction with MTP over the tokenised corpus."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from leanseek.data.batches import Batch, TokenStream
from leanseek.data.tokens import TokenisedCorpus, training_stream
from leanseek.model.transformer import Transformer
from leanseek.sections.training import TrainSettings
from leanseek.settings import Recipe
from leanseek.train.objectives.next_token import NextToken, mean_loss
from leanseek.train.schedules import batch_sequences, mtp_weight, sequences_before
from leanseek.train.stage import Stage


def pretrain(stage: Stage, corpus: TokenisedCorpus) -> dict[str, Any]:
    """Train a fresh model (or go on with one); return the stage's figures.

    Args:
        stage: of a run.
        corpus: training and validation tokens.
    Raises:
        DataError: the corpus is smaller than one batch.
    """
    return learn(stage, corpus, stage.model(), stage.run.recipe)


def objective_of(settings: TrainSettings) -> NextToken:
    """Return the loss that a stage learns by."""
    return NextToken(settings.mtp_weight, settings.balance_loss, settings.most_logits)


def learn(stage: Stage, corpus: TokenisedCorpus, model: Transformer, recipe: Recipe) -> dict[str, Any]:
    """Train a model on a corpus, as `pretrain` and the extension of its context do; return the stage's figures.

    Args:
        stage: whose settings count.
        corpus: training and validation tokens.
        model: what `stage.model` gave, or that with another config.
        recipe: whose windows are read.
    Raises:
        DataError: the corpus is smaller than one batch.
    """
    settings, length = stage.settings, recipe.data.sequence_tokens
    stream = training_stream(recipe, corpus, settings.batch_sequences, stage.tokenizer.bos_id)
    # A small validation set still needs one window.
    held_out = TokenStream(corpus.validation, min(length, len(corpus.validation) - 2), 1, 0)
    validation = [batch.to(recipe.device) for batch in held_out.validation(settings.batch_sequences)]
    bits_per_nat_per_token = corpus.facts.validation_tokens / corpus.facts.validation_bytes / math.log(2)

    def validate() -> dict[str, float]:
        loss = mean_loss(model, validation) if stage.ranks is None else stage.ranks.mean_loss(model, validation)
        return {"validation_loss": loss, "bits_per_byte": loss * bits_per_nat_per_token}

    def batch(step: int) -> Batch:
        if settings.steps is None:
            return replace(stream.batch(step), mtp=step % settings.mtp_every == 0)
        first, count = (f(step, settings.steps, settings) for f in (sequences_before, batch_sequences))
        mtp = step % settings.mtp_every == 0
        return replace(stream.take(first, count), mtp=mtp, mtp_weight=mtp_weight(step, settings.steps, settings))

    trainer = stage.fit(model, objective_of(settings), batch, {"validate": validate})
    read = sequences_before(trainer.done, settings.steps or trainer.done, settings)
    passes = read / (stream.batches_per_pass * settings.batch_sequences)
    with stage.meter.timed("looks"):
        measured = validate()
    return {"steps": trainer.done, "corpus_passes": passes, **measured}
