"""What several tests need: a tiny model, a tiny tokenizer, and how to make others like them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leanseek.model.config import ModelConfig
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.run import Run
from leanseek.settings import load_recipe
from leanseek.tokens.tokenizer import SMALLEST_VOCABULARY, Tokenizer

TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}

# The whole line in seconds.
TINY_RECIPE = """\
# tiny: for the tests
environments = ["running_total", "largest"]
threads = 1

[data]
documents = 300
sequence_tokens = 32
validation_fraction = 0.1

[pretrain]
steps = 6
batch_sequences = 4
checkpoint_every = 3
validate_every = 3
mtp_every = 2

[sft]
steps = 6
batch_sequences = 6
traces_per_environment = 20
checkpoint_every = 3
validate_every = 3
development_problems = 2

[grpo]
steps = 4
prompts_per_step = 4
samples_per_prompt = 4
max_new_tokens = 12
checkpoint_every = 2
validate_every = 2
development_problems = 2

[eval]
problems = 16
samples = 2
max_new_tokens = 12
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run in several processes at once: each on one core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """Return a function that gives the tiny config with some fields changed."""
    return lambda **changes: ModelConfig.from_dict({**TINY, **changes})


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., ModelConfig]) -> Callable[..., Transformer]:
    """Return a function that gives a model with lively weights: norms not one, router biases not zero."""

    def make(seed: int = 0, **changes: object) -> Transformer:
        model = initialise(Transformer(make_config(**changes)), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if name.endswith(("norm.weight", "e_score_correction_bias")):
                    tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_config(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    """Three layers, eight experts, an MTP layer."""
    return make_config()


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Transformer]) -> Transformer:
    """A model of the tiny config, shared by all tests: never change it."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer with a few dozen merges, as large as the tiny model's vocabulary."""
    rng = random.Random(0)
    words = "start total largest number where right left line step think answer the a of and".split()
    texts = [" ".join(rng.choices(words, k=12)) + f" {rng.randrange(100)} +{rng.randrange(10)}\n" for _ in range(300)]
    tokenizer = Tokenizer.train(texts, TINY["vocab_size"])
    assert SMALLEST_VOCABULARY < tokenizer.vocab_size <= TINY["vocab_size"]
    return tokenizer


@pytest.fixture
def make_run(tmp_path: Path, tiny_config: ModelConfig) -> Callable[..., Run]:
    """Return a function that makes a run folder, by its name, for a recipe of seconds with some settings changed."""

    def make(name: str = "run", **changes: object) -> Run:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()))
        (tmp_path / "tiny.toml").write_text(TINY_RECIPE)
        overrides = {"model": str(tmp_path / "config.json")} | {k.replace("__", "."): v for k, v in changes.items()}
        return Run.create(tmp_path / name, load_recipe(tmp_path / "tiny.toml", overrides))

    return make
