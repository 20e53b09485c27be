"""A small Gemma 3 with random weights, for transformers and as a GGUF: layers 5 and 11 are full, ten slide."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

LAYERS, FULL, KV_HEADS, HEAD_DIM, WINDOW, TOKENS = 12, (5, 11), 2, 32, 64, 320
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_WEIGHTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make() -> Gemma3ForCausalLM:
    torch.manual_seed(17)
    config = Gemma3TextConfig(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, query_pre_attn_scalar=HEAD_DIM, sliding_window=WINDOW,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0,
        layer_types=["full_attention" if layer in FULL else "sliding_attention" for layer in range(LAYERS)],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():  # Attention that differs from token to token, and norms that are not all alike.
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name else 0.2
            parameter.copy_(torch.randn(parameter.shape) * spread)
    return model


def write(model: Gemma3ForCausalLM, target: Path) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(target, "gemma3")
    writer.add_name("Tiny Gemma 3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(WINDOW)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_float32("gemma3.rope.freq_base_swa", 10_000.0)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("no_vocab")
    weights = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"] + 1)  # llama.cpp keeps what it multiplies by.
    for layer in range(LAYERS):
        for theirs, mine in _NORMS.items():
            writer.add_tensor(f"blk.{layer}.{mine}.weight", weights[f"model.layers.{layer}.{theirs}.weight"] + 1)
        for theirs, mine in _WEIGHTS.items():
            writer.add_tensor(f"blk.{layer}.{mine}.weight", weights[f"model.layers.{layer}.{theirs}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
