"""Pretraining as a stage: its figures, its log, and when MTP learns."""

from __future__ import annotations

import math

import pytest
import torch

from leanseek.checkpoint.directory import load_model
from leanseek.cost.ledger import Charge
from leanseek.data.batches import TokenStream
from leanseek.data.tokens import CorpusFacts, TokenisedCorpus, tokenise
from leanseek.errors import DataError
from leanseek.log import RunLog
from leanseek.train.objectives.next_token import mean_loss
from leanseek.train.pretrain import pretrain
from leanseek.train.stage import Stage


def stage_of(run, tokenizer) -> Stage:
    return Stage(run, "pretrain", tokenizer, RunLog(run.metrics_path), Charge("test"))


def test_figures_and_log_are_those_of_the_saved_model(make_run, tiny_tokenizer):
    run = make_run()
    corpus = tokenise(run.recipe, tiny_tokenizer)
    stage = stage_of(run, tiny_tokenizer)
    figures = pretrain(stage, corpus)
    model = load_model(run.latest("pretrain"))
    validation = TokenStream(corpus.validation, 32, 1, 0).validation(64)
    loss = mean_loss(model, validation)
    assert figures["validation_loss"] == pytest.approx(loss, rel=1e-5)
    nats = loss * corpus.facts.validation_tokens
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / corpus.facts.validation_bytes, rel=1e-5)
    stream = TokenStream(corpus.train, 32, 4, 0)
    assert figures["steps"] == 6 and figures["corpus_passes"] == 6 / stream.batches_per_pass
    assert stage.meter.tokens == 6 * 4 * 32 and stage.meter.flops > 0
    rows = RunLog(run.metrics_path).read("pretrain")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "validation_loss" in row and "bits_per_byte" in row] == [3, 6]
    assert rows[-1]["validation_loss"] == figures["validation_loss"]
    assert [row["step"] for row in rows if "mtp_loss" in row] == [1, 3, 5], "every second step"
    # The schedule: no warm-up of more than a step here, then V3's decay over the last 30%.
    assert rows[0]["lr_factor"] == 1.0 and rows[-1]["lr_factor"] < 1.0


def test_weights_learn(make_run, tiny_tokenizer):
    run = make_run(pretrain__steps=30)
    corpus = tokenise(run.recipe, tiny_tokenizer)
    figures = pretrain(stage_of(run, tiny_tokenizer), corpus)
    assert figures["validation_loss"] < 0.7 * math.log(320), "much better than guessing"


def test_a_short_validation_text_is_one_window(make_run, tiny_tokenizer):
    run = make_run(pretrain__steps=1)
    train = torch.randint(0, 300, (400,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    corpus = TokenisedCorpus(train, train[:9], CorpusFacts(3, 400, 9, 30))
    figures = pretrain(stage_of(run, tiny_tokenizer), corpus)
    expected = mean_loss(load_model(run.latest("pretrain")), TokenStream(train[:9], 7, 1, 0).validation(1))
    assert figures["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_too_small_a_corpus_is_told(make_run, tiny_tokenizer):
    tokens = torch.zeros(100, dtype=torch.int32)
    with pytest.raises(DataError, match="the corpus has 100 tokens; one batch of 4 x 32 needs 130"):
        pretrain(stage_of(make_run(), tiny_tokenizer), TokenisedCorpus(tokens, tokens, CorpusFacts(3, 100, 100, 100)))
