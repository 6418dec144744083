"""Extension: a base model learns a longer context, its positions stretched by YaRN; a stage for each length."""

from __future__ import annotations

from typing import Any

from leanseek.checkpoint.directory import copy_of
from leanseek.data.batches import TokenStream
from leanseek.data.tokens import TokenisedCorpus
from leanseek.log import say
from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer
from leanseek.sections.training import ExtendSettings
from leanseek.settings import Recipe
from leanseek.train.objectives.next_token import mean_loss
from leanseek.train.pretrain import learn, objective_of
from leanseek.train.stage import Stage

# DeepSeek-V3's: beta_fast and beta_slow are what the report calls beta and alpha, and the temperature follows from
# 0.1 ln(s) + 1 (section 4.3; its config.json has both mscales as 1).
YARN = {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
# Tokens of one forward pass that measures.
MEASURED_TOKENS = 4096


def stretched(config: ModelConfig, settings: ExtendSettings, original: int) -> ModelConfig:
    """Return a model's config with YaRN for a stage's context.

    Args:
        config: of the model that the stage starts from; stretched already, it keeps the context that it began with.
        settings: of the stage.
        original: tokens of the context that positions were learnt in, where neither settings nor config say.
    """
    known = config.yarn or {}
    original = settings.original_tokens or int(known.get("original_max_position_embeddings", original))
    factor = settings.factor or max(settings.sequence_tokens / original, 1.0)
    scaling = {**YARN, "factor": factor, "original_max_position_embeddings": original}
    longest = max(round(original * factor), settings.sequence_tokens)
    return config.replace(rope_scaling=scaling, max_position_embeddings=longest)


def extend(stage: Stage, corpus: TokenisedCorpus) -> dict[str, Any]:
    """Go on pretraining with longer sequences; return the stage's figures, with the loss at each length.

    Args:
        stage: of a run, of kind extend.
        corpus: training and validation tokens.
    Raises:
        DataError: the corpus is smaller than one batch.
    Source: DeepSeek-V3 report section 4.3: two such stages of 1,000 steps, 32K and 128K tokens, at the learning rate
        that pretraining ended with.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, ExtendSettings)
    model = stage.model()
    pretrained = "pretrain" in recipe.line
    original = recipe.data.sequence_tokens if pretrained else model.config.max_position_embeddings
    config = stretched(model.config, settings, original)
    lengths = lengths_of(config, settings, len(corpus.validation))

    def by_length(model: Transformer) -> dict[str, float]:
        found = {}
        for length in lengths:
            windows = TokenStream(corpus.validation, length, 1, 0).validation(max(MEASURED_TOKENS // length, 1))
            batches = [one.to(recipe.device) for one in windows]
            if stage.ranks is None:
                found[str(length)] = mean_loss(model, batches, settings.most_logits)
            else:
                found[str(length)] = stage.ranks.mean_loss(model, batches)
        return found

    def as_it_was() -> dict[str, float]:
        first = stage.model()
        if stage.ranks is not None:
            stage.trainer(first, objective_of(settings), settings)  # each has its part of it then
        return by_length(first)

    before = stage.measured_before(as_it_was)
    if config != model.config:
        model = copy_of(model, config).to(recipe.device)
    figures = learn(stage, corpus, model, of_length(recipe, settings.sequence_tokens, stage.name))
    after = by_length(model)
    told = ", ".join(f"{length} tokens {before.get(length, loss):.3f} -> {loss:.3f}" for length, loss in after.items())
    if stage.writes:
        say(f"  loss of unseen text, before and after: {told}")
    return {**figures, "context_tokens": config.max_position_embeddings, "loss_by_length": after}


def lengths_of(config: ModelConfig, settings: ExtendSettings, tokens: int) -> list[int]:
    """Return what a stage is measured at: doublings of the first context, and its own, as far as there is text."""
    assert config.yarn is not None
    length, found = int(config.yarn["original_max_position_embeddings"]), []
    while length < settings.sequence_tokens:
        found.append(length)
        length *= 2
    return [one for one in [*found, settings.sequence_tokens] if one <= tokens - 2]


def of_length(recipe: Recipe, length: int, name: str) -> Recipe:
    """Return a recipe with windows of a length, in an order of the stage's own: what was read last comes not first."""
    data = recipe.data.model_copy(update={"sequence_tokens": length})
    return recipe.model_copy(update={"data": data, "seed": recipe.seed + list(recipe.line).index(name) + 1})
