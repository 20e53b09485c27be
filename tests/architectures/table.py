"""The architectures tried: one line each, with the outcome that is right for it.

An architecture that the installed transformers does not have is skipped by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers

COMPRESSED, WHOLE, REFUSED = "compressed", "whole", "refused"


@dataclass(frozen=True)
class Architecture:
    """What to build, and what is expected of a prompt that is longer than the budget.

    compressed  layers that keep the whole text are cut
    whole       dkv leaves the cache as transformers would keep it, since there is nothing to cut
    refused     dkv cannot do it rightly: the text is the plain model's
    """

    config: str
    options: dict = field(default_factory=dict)
    outcome: str = COMPRESSED
    reason: str = ""  # A part of the reason in the report, of what is not compressed.
    model: str | None = None  # The class, where AutoModelForCausalLM is not it.
    layers: int = 4  # Layers that are cut.
    sample: bool = False  # Also in the gate.


# What every config is given, where it has the attribute.
TINY = dict(
    vocab_size=257,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
    tie_word_embeddings=False,
)
EXPERTS = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SLIDING = dict(sliding_window=32)
LINEAR = dict(
    linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
    shared_expert_intermediate_size=32,
)  # fmt: skip
MLA = dict(
    q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=24, n_routed_experts=4,
    n_group=1, topk_group=1, first_k_dense_replace=1, head_dim=16, num_key_value_heads=4, n_shared_experts=1,
)  # fmt: skip
INDEXED = MLA | EXPERTS | dict(index_topk=2048, index_head_dim=16, index_n_heads=2)
ENCODER = dict(
    d_model=64, encoder_layers=2, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=96, decoder_ffn_dim=96, init_std=0.2, decoder_start_token_id=1, forced_eos_token_id=None,
)  # fmt: skip
MAMBA = dict(
    mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_n_groups=1,
    mamba_chunk_size=32, mamba_d_ssm=128, use_mamba_kernels=False,
)  # fmt: skip


def _of(config: str, outcome: str = COMPRESSED, reason: str = "", **options) -> Architecture:
    known = {name: options.pop(name) for name in ("model", "layers", "sample") if name in options}
    return Architecture(config, options, outcome, reason, **known)


ARCHITECTURES: dict[str, Architecture] = {
    # Every layer sees the whole text.
    "Llama": _of("LlamaConfig", sample=True),
    "Mistral": _of("MistralConfig", sliding_window=None),
    "Ministral3": _of("Ministral3Config"),
    "Qwen2": _of("Qwen2Config"),
    "Qwen3": _of("Qwen3Config", head_dim=16),
    "Gemma": _of("GemmaConfig", head_dim=16),
    "Phi": _of("PhiConfig"),
    "Phi3": _of("Phi3Config"),
    "OLMo": _of("OlmoConfig"),
    "OLMo2": _of("Olmo2Config"),
    "Granite": _of("GraniteConfig", attention_multiplier=0.2),
    "Cohere": _of("CohereConfig"),
    "StarCoder2": _of("Starcoder2Config"),
    "StableLM": _of("StableLmConfig"),
    "GPT-NeoX": _of("GPTNeoXConfig"),
    "GPT-2": _of("GPT2Config", sample=True),
    "GPT-BigCode": _of("GPTBigCodeConfig"),
    "OPT": _of("OPTConfig", ffn_dim=96, word_embed_proj_dim=64, init_std=0.2),
    "BioGPT": _of("BioGptConfig"),
    "BERT decoder": _of("BertConfig", is_decoder=True),
    "CTRL": _of("CTRLConfig", n_embd=64, n_head=4, n_layer=4, dff=96),
    "Persimmon": _of("PersimmonConfig"),
    "Nemotron": _of("NemotronConfig"),
    "GLM": _of("GlmConfig", head_dim=16),
    "GLM4": _of("Glm4Config", head_dim=16),
    "SmolLM3": _of("SmolLM3Config"),
    "Helium": _of("HeliumConfig", head_dim=16),
    "ERNIE-4.5": _of("Ernie4_5Config", head_dim=16),
    "Arcee": _of("ArceeConfig"),
    "Seed-OSS": _of("SeedOssConfig", head_dim=16),
    "HunYuan": _of("HunYuanDenseV1Config", head_dim=16),
    "Apertus": _of("ApertusConfig"),
    "BitNet": _of("BitNetConfig"),
    "NanoChat": _of("NanoChatConfig"),
    "InternLM3": _of("InternLM3Config"),
    "Jais2": _of("Jais2Config"),
    "HyperCLOVA X": _of("HyperCLOVAXConfig"),
    "HRM": _of("HrmTextConfig", layers=8, num_hidden_layers=2, H_cycles=2, L_cycles=1, head_dim=16),
    # Some layers see a window alone.
    "Gemma2": _of("Gemma2Config", head_dim=16, layers=2, sample=True, **SLIDING),
    "Gemma3": _of("Gemma3TextConfig", head_dim=16, layers=2, sliding_window_pattern=2, **SLIDING),
    "Gemma4": _of("Gemma4TextConfig", layers=1, head_dim=16, global_head_dim=16, hidden_size_per_layer_input=16,
                  vocab_size_per_layer_input=257, **SLIDING),
    "VaultGemma": _of("VaultGemmaConfig", head_dim=16, layers=2, **SLIDING),
    "Cohere2": _of("Cohere2Config", layers=1, **SLIDING),
    "OLMo3": _of("Olmo3Config", layers=1, **SLIDING),
    "EXAONE4": _of("Exaone4Config", layers=1, sliding_window_pattern=4, **SLIDING),
    "ModernBERT decoder": _of("ModernBertDecoderConfig", layers=2),
    "CWM": _of("CwmConfig", layers=1, **SLIDING),
    "Granite-SWA": _of("GraniteSWAConfig", layers=1, **SLIDING),
    # Experts.
    "Mixtral": _of("MixtralConfig", **EXPERTS),
    "Qwen2-MoE": _of("Qwen2MoeConfig", shared_expert_intermediate_size=32, **EXPERTS),
    "Qwen3-MoE": _of("Qwen3MoeConfig", head_dim=16, **EXPERTS),
    "OLMoE": _of("OlmoeConfig", **EXPERTS),
    "FlexOLMo": _of("FlexOlmoConfig", **EXPERTS),
    "GraniteMoE": _of("GraniteMoeConfig", attention_multiplier=0.2, **EXPERTS),
    "GraniteMoEShared": _of("GraniteMoeSharedConfig", attention_multiplier=0.2, **EXPERTS),
    "GraniteMoE-SWA": _of("GraniteMoeSWAConfig", layers=1, **SLIDING, **EXPERTS),
    "PhiMoE": _of("PhimoeConfig", **EXPERTS),
    "gpt-oss": _of("GptOssConfig", head_dim=32, layers=2, sample=True, **SLIDING, **EXPERTS),
    "Llama4": _of("Llama4TextConfig", sample=True, layers=1, head_dim=16, intermediate_size_mlp=96,
                  attention_chunk_size=32, **EXPERTS),
    "DBRX": _of("DbrxConfig", d_model=64, n_heads=4, n_layers=4, max_seq_len=2048, attn_config=dict(kv_n_heads=2,
                clip_qkv=8.0, rope_theta=10000.0), ffn_config=dict(ffn_hidden_size=96, moe_num_experts=4, moe_top_k=2)),
    "dots1": _of("Dots1Config", head_dim=16, n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1,
                 **EXPERTS),
    "GLM4-MoE": _of("Glm4MoeConfig", head_dim=16, n_routed_experts=4, n_group=1, topk_group=1, **EXPERTS),
    "ERNIE-4.5-MoE": _of("Ernie4_5_MoeConfig", moe_num_experts=4, moe_k=2, **EXPERTS),
    "MiniMax-M2": _of("MiniMaxM2Config", head_dim=16, rotary_dim=8, **EXPERTS),
    "MiniMax-M3": _of("MiniMaxM3VLTextConfig", head_dim=16, rotary_dim=8, **EXPERTS),
    "AFMoE": _of("AfmoeConfig", layers=1, head_dim=16, n_group=1, topk_group=1, **SLIDING, **EXPERTS),
    "Cohere2-MoE": _of("Cohere2MoeConfig", layers=1, head_dim=16, **SLIDING, **EXPERTS),
    "EXAONE-MoE": _of("ExaoneMoeConfig", layers=1, head_dim=16, **SLIDING, **EXPERTS),
    "Flint": _of("FlintConfig", layers=3, head_dim=16, **SLIDING, **EXPERTS),
    "HunYuan-MoE": _of("HunYuanMoEV1Config", head_dim=16, **EXPERTS),
    "HY-V3": _of("HYV3Config", head_dim=16, **EXPERTS),
    "Laguna": _of("LagunaConfig", head_dim=16, **SLIDING, **EXPERTS),
    "Mellum": _of("MellumConfig", head_dim=16, **SLIDING, **EXPERTS),
    "SolarOpen": _of("SolarOpenConfig", head_dim=16, n_routed_experts=4, **EXPERTS),
    # Some layers have a state instead of rows.
    "Jamba": _of("JambaConfig", sample=True, attn_layer_period=2, attn_layer_offset=1, layers=2, **MAMBA, **EXPERTS),
    "Bamba": _of("BambaConfig", attn_layer_indices=[1, 3], layers=2, **MAMBA),
    "GraniteMoEHybrid": _of("GraniteMoeHybridConfig", layer_types=["mamba", "attention"] * 2, layers=2,
                            **MAMBA | EXPERTS),
    "LFM2": _of("Lfm2Config", layer_types=["conv", "full_attention"] * 2, layers=2),
    "LFM2-MoE": _of("Lfm2MoeConfig", layers=2, layer_types=["conv", "full_attention"] * 2, **EXPERTS),
    "LFM3": _of("Lfm3Config", layers=1, head_dim=16),
    "Qwen3-Next": _of("Qwen3NextConfig", head_dim=16, **LINEAR, layers=1, **EXPERTS),
    "Qwen3.5": _of("Qwen3_5TextConfig", layers=1, head_dim=16, **LINEAR),
    "Qwen3.5-MoE": _of("Qwen3_5MoeTextConfig", layers=1, head_dim=16, **LINEAR, **EXPERTS),
    "Nemotron-H": _of("NemotronHConfig", layers=1, head_dim=16, **MAMBA),
    "OLMo hybrid": _of("OlmoHybridConfig", layers=1, head_dim=16),
    # No layer keeps the whole text.
    "Ministral": _of("MinistralConfig", WHOLE, "nothing to compress", head_dim=16, **SLIDING),
    "Kolibri1": _of("Kolibri1Config", WHOLE, "nothing to compress", head_dim=16, **EXPERTS),
    "RecurrentGemma": _of("RecurrentGemmaConfig", WHOLE, "nothing to compress", lru_width=64,
                          attention_window_size=32, head_dim=16),
    "Inkling": _of("InklingTextConfig", WHOLE, "nothing to compress", head_dim=16, **SLIDING, **EXPERTS),
    "Inkling2": _of("Inkling2TextConfig", WHOLE, "nothing to compress", head_dim=16, **SLIDING, **EXPERTS),
    # K and V are shaped unlike: latent attention, and values of another width.
    "DeepSeek-V2": _of("DeepseekV2Config", REFUSED, "one shape", **MLA | EXPERTS),
    "DeepSeek-V3": _of("DeepseekV3Config", REFUSED, "one shape", sample=True, **MLA | EXPERTS),
    "MiniCPM3": _of("MiniCPM3Config", REFUSED, "one shape", **MLA),
    "GLM4-MoE-Lite": _of("Glm4MoeLiteConfig", REFUSED, "one shape", **MLA | EXPERTS),
    "LongCat-Flash": _of("LongcatFlashConfig", REFUSED, "one shape", **MLA | EXPERTS),
    "AXK1": _of("AXK1Config", REFUSED, "one shape", **MLA | EXPERTS),
    "Bailing hybrid": _of("BailingHybridConfig", REFUSED, "one shape", layer_types=["linear_attention",
                          "full_attention"] * 2, **MLA | EXPERTS),
    "Kimi-Linear": _of("KimiLinearConfig", REFUSED, "one shape", layer_types=["linear_attention",
                       "full_attention"] * 2, **MLA | EXPERTS),
    "Youtu": _of("YoutuConfig", REFUSED, "one shape", **MLA),
    "MiMo-V2-Flash": _of("MiMoV2FlashConfig", REFUSED, "one shape", head_dim=16, **SLIDING, **EXPERTS),
    # Layers of the cache that are of a class of their own.
    "FalconH1": _of("FalconH1Config", REFUSED, "LinearAttentionAndFullAttentionLayer", head_dim=16, **MAMBA),
    "Zamba": _of("ZambaConfig", REFUSED, "LinearAttentionAndFullAttentionLayer", **MAMBA),
    "Zamba2": _of("Zamba2Config", REFUSED, "LinearAttentionAndFullAttentionLayer", layers_block_type=["mamba",
                  "hybrid"] * 2, layer_types=["mamba", "hybrid"] * 2, mamba_ngroups=1, n_mamba_heads=4,
                  attention_head_dim=32, layers=2, **MAMBA),
    "ZAYA": _of("ZayaConfig", REFUSED, "LinearAttentionAndFullAttentionLayer", head_dim=16,
                **EXPERTS | dict(num_experts_per_tok=1)),
    "AXK2": _of("AXK2Config", REFUSED, "DynamicIndexedLayer", **INDEXED),
    "DeepSeek-V3.2": _of("DeepseekV32Config", REFUSED, "DynamicIndexedLayer", **INDEXED),
    "DeepSeek-V4": _of("DeepseekV4Config", REFUSED, "DeepseekV4", **INDEXED),
    "dots3": _of("Dots3NoteTextConfig", REFUSED, "DynamicIndexedLayer", swa_num_attention_heads=4,
                 swa_num_key_value_heads=4, swa_q_lora_rank=24, swa_kv_lora_rank=32, swa_head_dim=32,
                 swa_qk_nope_head_dim=16, swa_v_head_dim=16, **INDEXED | dict(num_key_value_heads=4)),
    "GLM-MoE-DSA": _of("GlmMoeDsaConfig", REFUSED, "DynamicIndexedLayer", **INDEXED),
    "HY-V4": _of("HYV4Config", REFUSED, "DynamicIndexedLayer", **INDEXED | SLIDING),
    # Caches of their own, or none.
    "MiniMax": _of("MiniMaxConfig", REFUSED, "cache of a class of its own", head_dim=16,
                   layer_types=["linear_attention", "full_attention"] * 2, block_size=32, sample=True, **EXPERTS),
    "Mamba": _of("MambaConfig", REFUSED, "no past_key_values"),
    "Mamba2": _of("Mamba2Config", REFUSED, "no past_key_values", num_heads=4, head_dim=32, n_groups=1, state_size=16),
    "FalconMamba": _of("FalconMambaConfig", REFUSED, "no past_key_values"),
    "xLSTM": _of("xLSTMConfig", REFUSED, "class of its own", num_heads=4, qk_dim_factor=1.0),
    "RWKV": _of("RwkvConfig", REFUSED, "class of its own"),
    "GPT": _of("OpenAIGPTConfig", REFUSED, "no past_key_values"),
    # Attention of their own.
    "Falcon": _of("FalconConfig", REFUSED, "attention interface", sample=True, multi_query=True, alibi=False),
    "BLOOM": _of("BloomConfig", REFUSED, "attention interface", n_head=4, n_layer=4),
    "GPT-J": _of("GPTJConfig", REFUSED, "attention interface", rotary_dim=8),
    "GPT-Neo": _of("GPTNeoConfig", REFUSED, "attention interface", attention_types=[[["global", "local"], 2]],
                   num_layers=4, window_size=32),
    "CodeGen": _of("CodeGenConfig", REFUSED, "attention interface", n_head=4, rotary_dim=8),
    "XGLM": _of("XGLMConfig", REFUSED, "attention interface", d_model=64, ffn_dim=96, num_layers=4, attention_heads=4,
                init_std=0.2),
    "MPT": _of("MptConfig", REFUSED, "attention interface", d_model=64, n_heads=4, n_layers=4, max_seq_len=4096),
    "GPT-NeoX-Japanese": _of("GPTNeoXJapaneseConfig", REFUSED, "attention interface"),
    "RoFormer": _of("RoFormerConfig", REFUSED, "attention interface", is_decoder=True, embedding_size=64),
    "TrOCR": _of("TrOCRConfig", REFUSED, "attention interface", d_model=64, decoder_layers=4,
                 decoder_attention_heads=4, decoder_ffn_dim=96),
    # Attention that is more than softmax(QK)V over the cache's rows.
    "DiffLlama": _of("DiffLlamaConfig", REFUSED, "changes K or V", sample=True),
    "Doge": _of("DogeConfig", REFUSED, "the mask adds numbers", sample=True),
    "JetMoE": _of("JetMoeConfig", REFUSED, "attention interface", kv_channels=16, num_key_value_heads=2, **EXPERTS),
    "Gemma3n": _of("Gemma3nTextConfig", REFUSED, "share", head_dim=16, num_kv_shared_layers=2,
                   layer_types=["sliding_attention", "full_attention"] * 2, hidden_size_per_layer_input=16,
                   vocab_size_per_layer_input=257, activation_sparsity_pattern=[0.0] * 4, **SLIDING),
    # An encoder beside: the cache is two.
    "T5": _of("T5Config", REFUSED, "encoder-decoder", model="T5ForConditionalGeneration", sample=True, d_model=64,
              d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=4, num_heads=4, decoder_start_token_id=1),
    "BART": _of("BartConfig", REFUSED, "encoder-decoder", model="BartForConditionalGeneration", **ENCODER),
    "Whisper": _of("WhisperConfig", REFUSED, "encoder-decoder", model="WhisperForConditionalGeneration",
                   num_mel_bins=16, max_source_positions=32, max_target_positions=512, suppress_tokens=None,
                   begin_suppress_tokens=None, **ENCODER),
    "Marian": _of("MarianConfig", REFUSED, "encoder-decoder", model="MarianMTModel", **ENCODER),
    "T5Gemma": _of("T5GemmaConfig", REFUSED, "encoder-decoder", model="T5GemmaForConditionalGeneration",
                   decoder=TINY | dict(head_dim=16), encoder=TINY | dict(head_dim=16)),
    "UMT5": _of("UMT5Config", REFUSED, "encoder-decoder", model="UMT5ForConditionalGeneration", d_model=64, d_kv=16,
                d_ff=96, num_layers=2, num_decoder_layers=4, num_heads=4, decoder_start_token_id=1),
    "M2M100": _of("M2M100Config", REFUSED, "encoder-decoder", model="M2M100ForConditionalGeneration", **ENCODER),
    "Pegasus": _of("PegasusConfig", REFUSED, "encoder-decoder", model="PegasusForConditionalGeneration", **ENCODER),
}  # fmt: skip


def build(architecture: Architecture) -> torch.nn.Module | None:
    """The model with random weights, the same each time; None where transformers has no such config."""
    config_class = getattr(transformers, architecture.config, None)
    if config_class is None:
        return None
    # An option that a config does not have would only look as if it counted.
    known = vars(config_class()).keys() | config_class.attribute_map.keys()
    config = config_class(**{name: value for name, value in TINY.items() if name in known} | architecture.options)
    torch.manual_seed(0)
    if architecture.model is not None:
        model = getattr(transformers, architecture.model)(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, sinks in model.named_parameters():
        if "sink" in name:
            torch.nn.init.uniform_(sinks, 2, 6)  # Beside 300 tokens a smaller one would hardly be seen.
    return model.eval()
