"""Families of models as transformers builds them, tiny, and what is to be found in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.architectures import Role

TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}
LAYERS3: dict[str, Any] = {**TEXT, "num_hidden_layers": 3}
GQA: dict[str, Any] = {**LAYERS3, "num_key_value_heads": 2}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 60, "n_positions": 16}

Q, K, V, OUT = Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O
QKV, GATE, UP, DOWN = Role.ATTENTION_QKV, Role.MLP_GATE, Role.MLP_UP, Role.MLP_DOWN
GATE_UP, NORM, EMBEDDING, POSITION, HEAD = Role.MLP_GATE_UP, Role.NORM, Role.EMBEDDING, Role.POSITION, Role.HEAD
ROUTER, MIXER, TASK_HEAD, CONV = Role.ROUTER, Role.MIXER, Role.TASK_HEAD, Role.CONV

LLAMA = {
    ".q_proj.weight": Q,
    ".k_proj.weight": K,
    ".v_proj.weight": V,
    ".o_proj.weight": OUT,
    ".gate_proj.weight": GATE,
    ".up_proj.weight": UP,
    ".down_proj.weight": DOWN,
    "layernorm.weight": NORM,
    "model.norm.weight": NORM,
    "embed_tokens.weight": EMBEDDING,
    "lm_head.weight": HEAD,
}
BERT = {
    ".self.query.weight": Q,
    ".self.key.bias": K,
    ".self.value.weight": V,
    ".attention.output.dense.weight": OUT,
    ".intermediate.dense.weight": UP,
    "LayerNorm.bias": NORM,
    "word_embeddings.weight": EMBEDDING,
    "token_type_embeddings.weight": EMBEDDING,
    "position_embeddings.weight": POSITION,
}
BART_LIKE = {
    ".q_proj.weight": Q,
    ".k_proj.weight": K,
    ".v_proj.weight": V,
    ".out_proj.weight": OUT,
    ".fc1.weight": UP,
    ".fc2.weight": DOWN,
    "layer_norm.weight": NORM,
}
CLIP = {
    **BART_LIKE,
    "layer_norm1.weight": NORM,
    "patch_embedding.weight": EMBEDDING,
    "position_embedding.weight": POSITION,
}
MOE = {
    ".q_proj.weight": Q,
    ".k_proj.weight": K,
    ".v_proj.weight": V,
    ".o_proj.weight": OUT,
    "layernorm.weight": NORM,
    "lm_head.weight": HEAD,
}


@dataclass(frozen=True)
class Case:
    """A model, and what is to be found in it.

    Attributes:
        config, model: classes of transformers.
        settings: of the config; a tuple is a config inside it.
        stacks: {end of a stack's prefix: its layers}.
        roles: {end of a name: its role}; every end must occur.
        heads: query heads and key-value heads of the main stack.
        family: as hinted, None for unseen ones.
        tied: aliases.
        unknown: ends of names that have no role.
    """

    config: str
    model: str
    settings: Mapping[str, Any]
    stacks: Mapping[str, int]
    roles: Mapping[str, Role]
    heads: tuple[int | None, int | None] = (4, 4)
    family: str | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


HEAD_OF_LLAMA = {"lm_head.weight": "model.embed_tokens.weight"}
HEAD_OF_GPT = {"lm_head.weight": "transformer.wte.weight"}
ONE = {"model.layers": 3}

HINTED = {
    "llama": Case("LlamaConfig", "LlamaForCausalLM", GQA, ONE, LLAMA, (4, 2), "llama"),
    "mistral": Case("MistralConfig", "MistralForCausalLM", GQA, ONE, LLAMA, (4, 2), "mistral"),
    "qwen2": Case("Qwen2Config", "Qwen2ForCausalLM", GQA, ONE, {**LLAMA, ".q_proj.bias": Q}, (4, 2), "qwen2"),
    "qwen3": Case(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**GQA, "head_dim": 16},
        ONE,
        {**LLAMA, "q_norm.weight": NORM},
        (4, 2),
        "qwen3",
    ),
    "gemma": Case(
        "GemmaConfig", "GemmaForCausalLM", {**GQA, "head_dim": 16}, ONE, LLAMA, (4, 2), "gemma", HEAD_OF_LLAMA
    ),
    "gemma2": Case(
        "Gemma2Config", "Gemma2ForCausalLM", {**GQA, "head_dim": 16}, ONE, LLAMA, (4, 2), "gemma2", HEAD_OF_LLAMA
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**GQA, "head_dim": 16},
        ONE,
        {**LLAMA, "k_norm.weight": NORM},
        (4, 2),
        "gemma3",
        HEAD_OF_LLAMA,
    ),
    "gemma3 with vision": Case(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": ("Gemma3TextConfig", {**GQA, "head_dim": 16}),
            "vision_config": ("SiglipVisionConfig", VISION),
            "mm_tokens_per_image": 4,
        },
        {"language_model.layers": 3, "vision_tower.encoder.layers": 2},
        {**LLAMA, ".fc1.weight": UP, ".out_proj.weight": OUT, "patch_embedding.weight": EMBEDDING},
        (4, 2),
        "gemma3",
        {"lm_head.weight": "model.language_model.embed_tokens.weight"},
        ("head.probe",),
    ),
    "phi": Case(
        "PhiConfig",
        "PhiForCausalLM",
        GQA,
        ONE,
        {
            ".q_proj.weight": Q,
            ".self_attn.dense.weight": OUT,
            ".fc1.weight": UP,
            ".fc2.weight": DOWN,
            "lm_head.bias": HEAD,
        },
        (4, 2),
        "phi",
    ),
    "phi3": Case(
        "Phi3Config",
        "Phi3ForCausalLM",
        {**GQA, "pad_token_id": 0},
        ONE,
        {".qkv_proj.weight": QKV, ".o_proj.weight": OUT, ".gate_up_proj.weight": GATE_UP, ".down_proj.weight": DOWN},
        (4, 2),
        "phi3",
    ),
    "gpt2": Case(
        "GPT2Config",
        "GPT2LMHeadModel",
        GPT,
        {"transformer.h": 3},
        {
            ".c_attn.weight": QKV,
            ".attn.c_proj.weight": OUT,
            ".c_fc.bias": UP,
            ".mlp.c_proj.weight": DOWN,
            ".ln_1.weight": NORM,
            "ln_f.bias": NORM,
            "wte.weight": EMBEDDING,
            "wpe.weight": POSITION,
            "lm_head.weight": HEAD,
        },
        (4, 4),
        "gpt2",
        HEAD_OF_GPT,
    ),
    "gpt_neox": Case(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        LAYERS3,
        {"gpt_neox.layers": 3},
        {
            ".query_key_value.weight": QKV,
            ".attention.dense.weight": OUT,
            ".dense_h_to_4h.weight": UP,
            ".dense_4h_to_h.weight": DOWN,
            "embed_in.weight": EMBEDDING,
        },
        (4, 4),
        "gpt_neox",
    ),
    "mixtral": Case(
        "MixtralConfig",
        "MixtralForCausalLM",
        {**GQA, "num_local_experts": 3},
        ONE,
        {**MOE, ".gate.weight": ROUTER},
        (4, 2),
        "mixtral",
    ),
    "qwen2_moe": Case(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**GQA, "num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
        ONE,
        {**MOE, ".mlp.gate.weight": ROUTER, "shared_expert_gate.weight": ROUTER, ".shared_expert.up_proj.weight": UP},
        (4, 2),
        "qwen2_moe",
    ),
    "qwen3_moe": Case(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**GQA, "num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8},
        ONE,
        {**MOE, ".mlp.gate.weight": ROUTER, "q_norm.weight": NORM},
        (4, 2),
        "qwen3_moe",
    ),
    "deepseek_v3": Case(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **LAYERS3,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "q_lora_rank": 12,
            "kv_lora_rank": 10,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_group": 1,
            "topk_group": 1,
        },
        ONE,
        {
            ".q_a_proj.weight": Role.ATTENTION_LATENT,
            ".q_b_proj.weight": Q,
            ".kv_a_proj_with_mqa.weight": Role.ATTENTION_LATENT,
            ".kv_b_proj.weight": Role.ATTENTION_KV,
            ".o_proj.weight": OUT,
            ".mlp.gate.weight": ROUTER,
            "e_score_correction_bias": ROUTER,
            ".shared_experts.down_proj.weight": DOWN,
            ".mlp.gate_proj.weight": GATE,
        },
        (4, 4),
        "deepseek",
    ),
    "bert": Case(
        "BertConfig",
        "BertForMaskedLM",
        LAYERS3,
        {"bert.encoder.layer": 3},
        {**BERT, "cls.predictions.decoder.weight": HEAD, "cls.predictions.transform.dense.weight": HEAD},
        (4, 4),
        "bert",
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    ),
    "bert classifier": Case(
        "BertConfig",
        "BertForSequenceClassification",
        LAYERS3,
        {"bert.encoder.layer": 3},
        {**BERT, "pooler.dense.weight": Role.POOLER, "classifier.weight": TASK_HEAD, "classifier.bias": TASK_HEAD},
        (4, 4),
        "bert",
    ),
    "bert for questions": Case(
        "BertConfig",
        "BertForQuestionAnswering",
        LAYERS3,
        {"bert.encoder.layer": 3},
        {**BERT, "qa_outputs.weight": TASK_HEAD},
        (4, 4),
        "bert",
    ),
    "roberta": Case(
        "RobertaConfig",
        "RobertaForMaskedLM",
        LAYERS3,
        {"roberta.encoder.layer": 3},
        {**BERT, "lm_head.dense.weight": HEAD, "lm_head.layer_norm.weight": NORM},
        (4, 4),
        "roberta",
        {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
    ),
    "t5": Case(
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 6,
            "d_ff": 48,
            "num_layers": 3,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "vocab_size": 60,
        },
        {"encoder.block": 3, "decoder.block": 2},
        {
            ".SelfAttention.q.weight": Q,
            ".EncDecAttention.k.weight": K,
            ".SelfAttention.v.weight": V,
            ".EncDecAttention.o.weight": OUT,
            ".DenseReluDense.wi.weight": UP,
            ".DenseReluDense.wo.weight": DOWN,
            "relative_attention_bias.weight": POSITION,
            "layer_norm.weight": NORM,
            "shared.weight": EMBEDDING,
        },
        (4, 4),
        "t5",
        {
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
    ),
    "vit": Case(
        "ViTConfig",
        "ViTForImageClassification",
        VISION,
        {"": 2},
        {
            "cls_token": EMBEDDING,
            "position_embeddings": POSITION,
            "projection.weight": EMBEDDING,
            "classifier.bias": TASK_HEAD,
        },
        (3, 3),
        "vit",
    ),
    "clip": Case(
        "CLIPConfig",
        "CLIPModel",
        {"text_config": LAYERS3, "vision_config": VISION},
        {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 2},
        {**CLIP, "text_projection.weight": Role.PROJECTOR, "class_embedding": EMBEDDING},
        (4, 4),
        "clip",
        unknown=("logit_scale",),
    ),
    "whisper": Case(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 60,
            "pad_token_id": 0,
        },
        {"encoder.layers": 3, "decoder.layers": 2},
        {**BART_LIKE, "conv1.weight": CONV, "embed_positions.weight": POSITION, "embed_tokens.weight": EMBEDDING},
        (4, 4),
        "whisper",
        {"proj_out.weight": "model.decoder.embed_tokens.weight"},
    ),
    "resnet": Case(
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 3]},
        {"encoder.stages": 5},
        {
            ".convolution.weight": CONV,
            ".normalization.weight": NORM,
            ".running_mean": Role.NORM_STATISTIC,
            ".num_batches_tracked": Role.BUFFER,
            "classifier.1.weight": TASK_HEAD,
        },
        (None, None),
        "resnet",
    ),
}

UNSEEN = {
    "olmo2": Case("Olmo2Config", "Olmo2ForCausalLM", GQA, ONE, {**LLAMA, "q_norm.weight": NORM}, (4, 2)),
    "cohere": Case("CohereConfig", "CohereForCausalLM", GQA, ONE, LLAMA, (4, 2), tied=HEAD_OF_LLAMA),
    "stablelm": Case("StableLmConfig", "StableLmForCausalLM", GQA, ONE, {**LLAMA, "norm.bias": NORM}, (4, 2)),
    "falcon": Case(
        "FalconConfig",
        "FalconForCausalLM",
        LAYERS3,
        {"transformer.h": 3},
        {
            ".query_key_value.weight": QKV,
            ".dense.weight": OUT,
            ".dense_h_to_4h.weight": UP,
            "word_embeddings.weight": EMBEDDING,
        },
        (4, 1),
        tied={"lm_head.weight": "transformer.word_embeddings.weight"},
    ),
    "deberta": Case(
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {**LAYERS3, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        {"encoder.layer": 3},
        {
            ".query_proj.weight": Q,
            ".key_proj.weight": K,
            ".value_proj.weight": V,
            ".attention.output.dense.weight": OUT,
            "rel_embeddings.weight": POSITION,
            "classifier.weight": TASK_HEAD,
        },
    ),
    "siglip": Case(
        "SiglipConfig",
        "SiglipModel",
        {"text_config": {**LAYERS3, "projection_size": 24}, "vision_config": VISION},
        {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 2},
        {**CLIP, "head.attention.in_proj_weight": QKV},
        unknown=("logit_scale", "logit_bias", "head.probe"),
    ),
    "llava": Case(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {"text_config": ("LlamaConfig", GQA), "vision_config": ("CLIPVisionConfig", VISION)},
        {"language_model.layers": 3, "encoder.layers": 2},
        {**LLAMA, "multi_modal_projector.linear_1.weight": Role.PROJECTOR, ".out_proj.weight": OUT},
        (4, 2),
    ),
    "mamba": Case(
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 60, "state_size": 4},
        {"backbone.layers": 3},
        {".in_proj.weight": MIXER, ".out_proj.weight": MIXER, ".A_log": MIXER, ".D": MIXER, ".conv1d.weight": CONV},
        (None, None),
        tied={"lm_head.weight": "backbone.embeddings.weight"},
    ),
    "gpt_neo": Case(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 60, "attention_types": [[["global"], 2]]},
        {"transformer.h": 2},
        {
            ".q_proj.weight": Q,
            ".out_proj.weight": OUT,
            ".c_fc.weight": UP,
            ".c_proj.weight": DOWN,
            "wpe.weight": POSITION,
        },
        tied=HEAD_OF_GPT,
    ),
    "qwen2_vl": Case(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**GQA, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 2, "embed_dim": 24, "num_heads": 3, "hidden_size": 32, "mlp_ratio": 2},
        },
        {"language_model.layers": 3, "visual.blocks": 2},
        {
            **LLAMA,
            ".qkv.weight": QKV,
            ".attn.proj.weight": OUT,
            "patch_embed.proj.weight": EMBEDDING,
            "merger.mlp.0.weight": Role.PROJECTOR,
            "merger.ln_q.weight": NORM,
        },
        (4, 2),
    ),
    "modernbert": Case(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {**LAYERS3, "pad_token_id": 0},
        ONE,
        {
            ".Wqkv.weight": QKV,
            ".attn.Wo.weight": OUT,
            ".Wi.weight": GATE_UP,
            ".mlp.Wo.weight": DOWN,
            "head.dense.weight": HEAD,
        },
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        unknown=("rotary_emb.full_attention_inv_freq", "rotary_emb.sliding_attention_inv_freq"),
    ),
    "swin": Case(
        "SwinConfig",
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [2, 3], "num_heads": [2, 4], "image_size": 32, "window_size": 4},
        {"encoder.layers": 5},
        {"relative_position_bias_table": POSITION, "classifier.weight": TASK_HEAD},
        (2, 2),
        unknown=("reduction.weight",),
    ),
    "wav2vec2": Case(
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        LAYERS3,
        {"encoder.layers": 3},
        {".q_proj.weight": Q, ".intermediate_dense.weight": UP, ".output_dense.weight": DOWN, ".conv.weight": CONV},
        unknown=("feature_projection.projection.weight", "feature_projection.projection.bias"),
    ),
    "bart": Case(
        "BartConfig",
        "BartForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 60,
        },
        {"encoder.layers": 3, "decoder.layers": 2},
        {**BART_LIKE, "final_logits_bias": Role.BUFFER},
        tied={
            "model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight",
            "lm_head.weight": "model.shared.weight",
        },
    ),
    "jamba": Case(
        "JambaConfig",
        "JambaForCausalLM",
        {
            **GQA,
            "num_hidden_layers": 4,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_dt_rank": 4,
        },
        {"model.layers": 4},
        {**MOE, ".mamba.in_proj.weight": MIXER, ".router.weight": ROUTER, ".gate_proj.weight": GATE},
        (4, 2),
    ),
    "xlm": Case(
        "XLMConfig",
        "XLMWithLMHeadModel",
        {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 60, "n_words": 60},
        {
            "transformer.attentions": 3,
            "transformer.ffns": 3,
            "transformer.layer_norm1": 3,
            "transformer.layer_norm2": 3,
        },
        {
            ".q_lin.weight": Q,
            ".out_lin.weight": OUT,
            ".lin1.weight": UP,
            ".lin2.weight": DOWN,
            "transformer.embeddings.weight": EMBEDDING,
        },
        heads=(4, None),
        tied={"pred_layer.proj.weight": "transformer.embeddings.weight"},
    ),
}
