"""GGUF: a DeepSeek-V2 or V3 model as the one file that llama.cpp loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanseek.checkpoint.quantised import read_tensor, scales_of
from leanseek.checkpoint.shards import read_shards, shown, stored_tensors
from leanseek.errors import CheckpointError, UsageError, nearest
from leanseek.model.config import ModelConfig

KINDS = ("f16", "q8_0", "q4_0")
ARCHITECTURE = "deepseek2"  # llama.cpp's name for V2, V3 and what is built like them
# llama.cpp takes models with these many layers, and no others, to have plain queries.
PLAIN_QUERY_LAYERS = (26, 27)
# What stays in fp32: vectors, and the router, which chooses.
_FLOAT32 = ("ffn_gate_inp.weight",)
# Rows of the vocabulary keep 8 bits where the rest has 4.
_VOCABULARY = ("token_embd.weight", "output.weight")
_PRE_TOKENIZERS = ((r"\p{N}{1,3}", "deepseek-v3"), ("[\r\n]", "deepseek-llm"))

# File name -> the whole tensor, dequantised where the file has it in FP8.
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Piece:
    """One tensor of a GGUF file.

    Args:
        name: in the GGUF file.
        shape: as numpy has it (GGUF writes it the other way round).
        sources: tensors of the checkpoint: one, or all experts' to be stacked.
        part: None, "k" or "v": which half of `kv_b_proj` it is.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    part: str | None = None


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Yield what a model's GGUF file holds, in order. The MTP layer is left out: llama.cpp's own converter skips it.

    Raises:
        UsageError: a model that llama.cpp could not run, or would run as another function.
    """
    _check(config)
    dim, heads = config.hidden_size, config.num_attention_heads
    latent, rank = config.kv_lora_rank, config.q_lora_rank
    yield Piece("token_embd.weight", (config.vocab_size, dim), ("model.embed_tokens.weight",))
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"

        def piece(name: str, source: str, *shape: int, part: str | None = None, at: int = layer) -> Piece:
            return Piece(f"blk.{at}.{name}", shape, (f"model.layers.{at}.{source}",), part)

        yield piece("attn_norm.weight", "input_layernorm.weight", dim)
        if rank is None:
            yield piece("attn_q.weight", "self_attn.q_proj.weight", heads * config.qk_head_dim, dim)
        else:
            yield piece("attn_q_a.weight", "self_attn.q_a_proj.weight", rank, dim)
            yield piece("attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight", rank)
            yield piece("attn_q_b.weight", "self_attn.q_b_proj.weight", heads * config.qk_head_dim, rank)
        yield piece("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight", config.cache_width, dim)
        yield piece("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", latent)
        # For absorbed attention: the keys' up-projection is transposed per head, the values' stays.
        kv = "self_attn.kv_b_proj.weight"
        yield piece("attn_k_b.weight", kv, heads, latent, config.qk_nope_head_dim, part="k")
        yield piece("attn_v_b.weight", kv, heads, config.v_head_dim, latent, part="v")
        yield piece("attn_output.weight", "self_attn.o_proj.weight", dim, heads * config.v_head_dim)
        yield piece("ffn_norm.weight", "post_attention_layernorm.weight", dim)
        if not config.is_moe(layer):
            yield from _mlp(f"{ours}.mlp", theirs, "", dim, config.intermediate_size)
            continue
        yield piece("ffn_gate_inp.weight", "mlp.gate.weight", config.n_routed_experts, dim)
        if config.topk_method == "noaux_tc":
            yield piece("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", config.n_routed_experts)
        width = config.moe_intermediate_size
        for name, shape in (("gate", (width, dim)), ("up", (width, dim)), ("down", (dim, width))):
            sources = tuple(f"{ours}.mlp.experts.{e}.{name}_proj.weight" for e in range(config.n_routed_experts))
            yield Piece(f"{theirs}.ffn_{name}_exps.weight", (config.n_routed_experts, *shape), sources)
        yield from _mlp(f"{ours}.mlp.shared_experts", theirs, "_shexp", dim, config.n_shared_experts * width)
    yield Piece("output_norm.weight", (dim,), ("model.norm.weight",))
    yield Piece("output.weight", (config.vocab_size, dim), ("lm_head.weight",))


class GgufConversion:
    """The conversion of a model folder to a GGUF file; it is whole or not there.

    Args:
        source: a model folder, in FP8 or not.
        out: the file.
        to: "gguf".
        gguf_type: one of `KINDS`.
        options: of other conversions; none of them is for this one.
    Raises:
        UsageError: an unknown type, a model that llama.cpp cannot run, or no `gguf` package.
        CheckpointError: `source` cannot be read, or `out` is there already.
    """

    def __init__(self, source: str | Path, out: str | Path, to: str, *, gguf_type: str = "f16", **options: Any) -> None:
        self.source, self.out, self.kind = Path(source), Path(out), gguf_type
        check_kind(gguf_type)
        if self.out.exists():
            raise CheckpointError(f"{out} is there already; give another name, or delete it first")
        self._config = ModelConfig.from_file(self.source / "config.json")
        self._plan = list(pieces(self._config))
        self._tensors = stored_tensors(read_shards(self.source))
        self._scales = scales_of(self._tensors)
        missing = [name for piece in self._plan for name in piece.sources if name not in self._tensors]
        if missing:
            raise CheckpointError(f"{source} lacks {len(missing)} tensors, {shown(missing)}")

    @property
    def total_bytes(self) -> int:
        """What is to be read."""
        return sum(self._tensors[name].nbytes for piece in self._plan for name in piece.sources)

    @property
    def written_bytes(self) -> int:
        """What the weights will take."""
        gguf = _package()
        return sum(_bytes(gguf, piece, _type(gguf, piece, self.kind)) for piece in self._plan)

    def run(self, on_progress: Callable[[int, bool], None] = lambda count, kept: None) -> None:
        """Convert.

        Args:
            on_progress: called with the bytes that a tensor took to read, and False.
        Raises:
            CheckpointError: a scale is not finite, the tokenizer is not byte-level BPE, or the disk is full.
        """

        def read(name: str) -> Tensor:
            tensor = self._tensors[name]
            on_progress(tensor.nbytes, False)
            return read_tensor(tensor, self._scales.get(name))

        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(self.out, self._config, read, self.source, self.kind)
        except OSError as error:
            raise CheckpointError(f"{self.out} cannot be written ({error.strerror or error})") from None


def check_kind(kind: str) -> None:
    """Refuse a type that GGUF files are not written in.

    Raises:
        UsageError: it is one.
    """
    if kind not in KINDS:
        raise UsageError(f"a GGUF file of {kind!r} is not known{nearest(kind, KINDS)}; accepted: {', '.join(KINDS)}")


def write_gguf(
    path: Path,
    config: ModelConfig,
    read: Read,
    folder: Path,
    kind: str,
    *,
    types: Callable[[Any, Piece], Any] | None = None,
    blocks: Callable[[Piece, Any], Any] | None = None,
) -> None:
    """Write a model as a GGUF file, tensor by tensor: memory holds one tensor of it at a time.

    Args:
        path: of the file; it is written beside itself and renamed once it is whole.
        config: of the model.
        read: gives the checkpoint's tensors.
        folder: with tokenizer.json and tokenizer_config.json.
        kind: "f16", "q8_0" or "q4_0"; where rows cannot be cut into blocks of 32, and for vectors, f16 and fp32.
        types: gives the type of a tensor in place of `kind`'s (of the package, and the tensor).
        blocks: gives a tensor's bytes as they are to be, of its type; None: what `read` gives is quantised.
    Raises:
        UsageError: an unknown kind, a model that llama.cpp cannot run, or no `gguf` package.
        CheckpointError: the tokenizer is not byte-level BPE.
    """
    gguf = _package()
    check_kind(kind)
    plan = list(pieces(config))
    temporary = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
    _describe(writer, gguf, config, folder.name)
    _vocabulary(writer, gguf, config, folder)
    forms = {piece.name: types(gguf, piece) if types is not None else _type(gguf, piece, kind) for piece in plan}
    for piece in plan:
        form = forms[piece.name]
        quantised = form.name not in ("F16", "F32")
        shape = gguf.quant_shape_to_byte_shape(piece.shape, form) if quantised else piece.shape
        dtype = np.dtype(np.uint8 if quantised else np.float16 if form.name == "F16" else np.float32)
        writer.add_tensor_info(piece.name, shape, dtype, _bytes(gguf, piece, form), form)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for piece in plan:
            form = forms[piece.name]
            data = blocks(piece, form) if blocks is not None else _data(gguf, config, piece, read, form)
            writer.write_tensor_data(data)
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        os.replace(temporary, path)
    except BaseException:
        writer.close()
        temporary.unlink(missing_ok=True)
        raise


def _check(config: ModelConfig) -> None:
    if config.family.attention != "latent":
        raise UsageError(f"model_type {config.model_type!r} has no GGUF export here; deepseek_v2 and deepseek_v3 have")
    if config.q_lora_rank is None and config.num_hidden_layers not in PLAIN_QUERY_LAYERS:
        layers = " or ".join(map(str, PLAIN_QUERY_LAYERS))
        raise UsageError(
            f"llama.cpp runs models without q_lora_rank only if they have {layers} layers (V2-Lite); "
            f"this one has {config.num_hidden_layers}"
        )
    if config.topk_method == "group_limited_greedy" and config.n_group > 1:
        raise UsageError(
            "llama.cpp rates groups of experts by their two best, V2 by the best one: it would be another function"
        )
    if not config.n_shared_experts and config.first_k_dense_replace < config.num_hidden_layers:
        raise UsageError("llama.cpp needs a shared expert; n_shared_experts = 0")


def _mlp(source: str, theirs: str, suffix: str, dim: int, width: int) -> Iterator[Piece]:
    for name, shape in (("gate", (width, dim)), ("up", (width, dim)), ("down", (dim, width))):
        yield Piece(f"{theirs}.ffn_{name}{suffix}.weight", shape, (f"{source}.{name}_proj.weight",))


def _type(gguf: Any, piece: Piece, kind: str) -> Any:
    types = gguf.GGMLQuantizationType
    if len(piece.shape) == 1 or piece.name.endswith(_FLOAT32):
        return types.F32
    if kind == "f16" or piece.shape[-1] % 32:
        return types.F16
    return types.Q8_0 if kind == "q8_0" or piece.name in _VOCABULARY else types.Q4_0


def _bytes(gguf: Any, piece: Piece, form: Any) -> int:
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[form]
    return int(np.prod(piece.shape)) // per_block * block_bytes


def _data(gguf: Any, config: ModelConfig, piece: Piece, read: Read, form: Any) -> Any:
    parts = []
    for source in piece.sources:
        tensor = read(source).to(torch.float32)
        if piece.part is not None:
            width = (config.qk_nope_head_dim, config.v_head_dim)
            keys, values = tensor.view(config.num_attention_heads, sum(width), -1).split(width, dim=1)
            tensor = keys.transpose(1, 2) if piece.part == "k" else values
        parts.append(gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), form))
    stacked = piece.part is None and len(piece.shape) == 3
    return np.stack(parts) if stacked else parts[0]


def _describe(writer: Any, gguf: Any, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)  # absorbed: all heads share the latent
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.cache_width)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    softmax = config.scoring_func == "softmax"
    gating = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(gating.SOFTMAX if softmax else gating.SIGMOID)
    if config.n_group > 1:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if (yarn := config.yarn) is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(yarn["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(yarn.get("original_max_position_embeddings", 4096)))
        writer.add_rope_scaling_yarn_beta_fast(float(yarn.get("beta_fast", 32)))
        writer.add_rope_scaling_yarn_beta_slow(float(yarn.get("beta_slow", 1)))
        # llama.cpp divides by the tenth again.
        writer.add_rope_scaling_yarn_log_mul(0.1 * float(yarn.get("mscale_all_dim", 0.0)))


def _vocabulary(writer: Any, gguf: Any, config: ModelConfig, folder: Path) -> None:
    path = folder / "tokenizer.json"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        model, added = whole["model"], whole.get("added_tokens", [])
        vocabulary, merges = dict(model["vocab"]), model["merges"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a byte-level BPE tokenizer, which GGUF needs ({error!r})") from None
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * config.vocab_size
    for text, index in vocabulary.items():
        tokens[index], kinds[index] = text, gguf.TokenType.NORMAL
    for token in added:
        special = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(path, whole))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_ids[0])
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text(encoding="utf-8"))
        writer.add_add_bos_token(bool(values.get("add_bos_token", False)))
        if isinstance(values.get("chat_template"), str):
            writer.add_chat_template(values["chat_template"])


def _pre_tokenizer(path: Path, whole: dict[str, Any]) -> str:
    """Return llama.cpp's name of the splits, known by the first of them."""
    steps = (whole.get("pre_tokenizer") or {}).get("pretokenizers", [])
    first = next((s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"), None)
    for pattern, name in _PRE_TOKENIZERS:
        if first == pattern:
            return name
    raise CheckpointError(
        f"{path}: its splits are not DeepSeek's (the first is {first!r}), so GGUF has no name for them"
    )


def _package() -> Any:
    try:
        import gguf  # noqa: PLC0415 - an extra
        import gguf.quants  # noqa: PLC0415
    except ImportError:
        raise UsageError("writing GGUF needs the package gguf: pip install 'leanseek[gguf]'") from None
    return gguf
