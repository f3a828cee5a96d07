"""The words of tensor names: which ones number layers, and which role each one gives. Data only.

Gathered from the models of transformers (v4 and v5), timm, torchvision, open_clip, diffusers, the original
(ldm, Meta, fairseq, OLMo, Mamba, RWKV) releases and GGUF; methods/structural.md, architecture_layouts, has the table of
the common ones. All words are lower case. A word not listed here means nothing: its tensor is `OTHER`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cuvee.architectures.meaning import Role

__all__ = [
    "ATTENTION_WORDS",
    "BUFFERS",
    "CONDITIONING",
    "EMBEDDINGS",
    "EMBEDDING_TOKENS",
    "HEADS",
    "IN_ATTENTION",
    "IN_LAYER",
    "IN_MLP",
    "LAYER_SCALES",
    "LEAVES",
    "LIST_WORDS",
    "MIXER_MARKS",
    "MIXER_WORDS",
    "MLP_WORDS",
    "NORM_STATISTICS",
    "NORM_TOKENS",
    "NO_LAYER_LISTS",
    "PAIRS",
    "PLAIN_HEADS",
    "PLURAL_LIST_WORDS",
    "POOLERS",
    "POSITIONS",
    "POSITION_TOKENS",
    "PROJECTORS",
    "ROUTERS",
    "SINGLE_BLOCKS",
    "TASK_HEADS",
    "TASK_HEAD_TOKENS",
    "TOKEN_EMBEDDINGS",
    "TRANSPARENT",
]

_Words = frozenset[str]


def _words(text: str) -> _Words:
    return frozenset(text.split())


def _roles(table: Mapping[Role, str]) -> Mapping[str, Role]:
    return {word: role for role, text in table.items() for word in text.split()}


# --- what lies below a module, and what lists are called

LEAVES = _words(
    "weight bias running_mean running_var num_batches_tracked base_layer weight_g weight_v weight_orig "
    "weight_scale weight_scale_inv weight_scale_2 weight_shape weight_packed weight_zero_point weight_g_idx "
    "input_scale output_scale k_scale v_scale scale_weight scale_input qweight qzeros scales g_idx absmax "
    "quant_map quant_state nested_absmax nested_quant_map SCB weight_format"
)
NORM_STATISTICS = _words("running_mean running_var")

LIST_WORDS = _words(
    "layer layers block blocks h blk encoders decoders resblocks stage stages mid mid_block middle_block"
)
PLURAL_LIST_WORDS = _words("layers blocks stages resblocks")
SINGLE_BLOCKS = _words("mid mid_block middle_block")
"""The middle of a diffusion UNet: one block that has no number."""
NO_LAYER_LISTS = _words(
    "expert experts quantizer quantizers codebook codebooks model models member members networks nets "
    "ensemble head heads adapter adapters"
)
"""Lists of these are no layers."""

# --- the surroundings of a word

ATTENTION_WORDS = _words("attn attention att mha crossattention attn1 attn2 selfattention")
MLP_WORDS = _words(
    "mlp mlps ffn ffns ff ffw feed_forward feedforward fc_block moe moe_block block_sparse_moe sparse_moe_block "
    "shared_expert shared_experts shared_mlp densereludense ffn_layer conv_mlp channel_mixer img_mlp txt_mlp "
    "ff_context mlp_context feed_forward_moe"
)
MIXER_WORDS = _words(
    "mixer mamba mamba2 ssm linear_attn linear_attention short_conv conv recurrent_block temporal_block rg_lru "
    "mlstm_layer slstm_layer gla kda"
)
MIXER_MARKS = _words(
    "a_log dt_bias dt_proj x_proj conv1d q_conv1d k_conv1d v_conv1d rg_lru in_proj_qkvz in_proj_qkv in_proj_ba "
    "in_proj_a in_proj_b in_proj_z dt_proj_weight x_proj_weight dt_proj_bias time_decay time_first time_mix_key "
    "slope_rate"
)
"""Parameters that only a mixer has: where one of them lies, `in_proj` and `out_proj` belong to the mixer."""
TRANSPARENT = _words("linear lin dense fc proj projection out_proj layer out output module wrapped default net mlp")
"""Words that say nothing alone: the head `head.linear` is the head `head`."""

# --- roles inside attention, MLP and layers

IN_ATTENTION: Mapping[str, Role] = _roles(
    {
        Role.ATTENTION_Q: "q query_layer q_attn q_head project_q query_global wq_b q_b in_proj_q projection_query",
        Role.ATTENTION_K: "k key_layer k_head project_k key_global in_proj_k projection_key",
        Role.ATTENTION_V: "v value_layer v_head project_v value_global in_proj_v projection_value",
        Role.ATTENTION_QKV: "in_proj c_attn",
        Role.ATTENTION_KV: "kv",
        Role.ATTENTION_O: "dense proj projection out_proj c_proj o out wo output linear_out out_linear output_proj "
        "proj_out attention_out out_projection output_projection projection_layer post_proj fc "
        "linear_proj",
        Role.POSITION: "r",
    }
)
IN_MLP: Mapping[str, Role] = _roles(
    {
        Role.MLP_GATE: "fc1_g wi_0 gate_linear",
        Role.MLP_UP: "fc1_x wi_1 wi fc1 fc_in c_fc linear1 linear_1 dense1 dense_1 lin1 w_1 up proj1 input_linear "
        "up_linear weights_in in_proj conv1 w1 v1 fc_1 layer_1 intermediate in_layer proj_in map_inputs_layer",
        Role.MLP_GATE_UP: "gate_up w12 wi_fused",
        Role.MLP_DOWN: "fc2 fc_out c_proj linear2 linear_2 dense2 dense_2 lin2 w_2 down proj2 output_linear "
        "down_linear weights_out out_proj conv2 w2 wo fc_2 layer_2 output out out_layer proj_out proj",
    }
)
IN_LAYER: Mapping[str, Role] = _roles(
    {
        Role.ATTENTION_Q: "q_proj query q_lin to_q wq query_proj linear_q q_b_proj add_q_proj q_linear q_proj_linear "
        "q_up_proj attn_q",
        Role.ATTENTION_K: "k_proj key k_lin to_k wk key_proj linear_k add_k_proj k_linear attn_k",
        Role.ATTENTION_V: "v_proj value v_lin to_v wv value_proj linear_v add_v_proj v_linear attn_v",
        Role.ATTENTION_QKV: "qkv qkv_proj query_key_value wqkv w_pack att_proj to_qkv add_qkv_proj attn_qkv img_qkv "
        "txt_qkv linear_qkv qkv_linear",
        Role.ATTENTION_KV: "kv_proj to_kv kv_b_proj key_value wkv kv_linear kv_up_proj",
        Role.ATTENTION_LATENT: "q_a_proj kv_a_proj_with_mqa kv_a_proj q_down_proj kv_down_proj wq_a wkv_a",
        Role.ATTENTION_O: "o_proj out_lin to_out to_add_out attn_out attn_output o_b_proj",
        Role.MLP_GATE: "gate_proj ffn_gate ffn_gate_exps ffn_gate_shexp fc12",
        Role.MLP_UP: "up_proj dense_h_to_4h fc1 lin1 c_fc fc_in linear_fc1 intermediate_dense ffn_up ffn_up_exps "
        "ffn_up_shexp fc11 wi linear1 ff_proj proj_mlp input_linear expert_v1",
        Role.MLP_GATE_UP: "gate_up_proj gate_and_up_proj gate_up ffn_gate_up_exps",
        Role.MLP_DOWN: "down_proj dense_4h_to_h fc2 lin2 fc_out linear_fc2 output_dense ffn_down ffn_down_exps "
        "ffn_down_shexp linear2 ff_out output_linear ffn_output",
        Role.ROUTER: "router e_score_correction_bias expert_bias shared_expert_gate ffn_gate_inp gate_score "
        "moe_statics exp_probs_b shared_gate",
        Role.MIXER: "a_log dt_bias dt_proj x_proj conv1d q_conv1d k_conv1d v_conv1d rg_lru in_proj_qkvz in_proj_ba "
        "in_proj_qkv in_proj_z in_proj_a in_proj_b time_decay time_first time_mix_key time_mix_value "
        "time_mix_receptance linear_y linear_x slope_rate short_conv dt_proj_weight x_proj_weight dt_proj_bias ssm_a "
        "ssm_d ssm_in ssm_out ssm_dt ssm_x ssm_conv1d",
    }
)
PAIRS: Mapping[tuple[str, str], Role] = {
    ("intermediate", "dense"): Role.MLP_UP,
    ("output", "dense"): Role.MLP_DOWN,
    ("intermediate_query", "dense"): Role.MLP_UP,
    ("output_query", "dense"): Role.MLP_DOWN,
}
"""BERT's MLP has no name of its own; BLIP-2's querying transformer has two."""
ROUTERS = _words("gate wg gate_proj")
"""Routers where experts are their siblings."""
LAYER_SCALES = _words(
    "gamma gamma_1 gamma_2 lambda_1 lambda_2 lambda1 ls1 ls2 layer_scale layer_scale1 layer_scale2 layer_scale_1 "
    "layer_scale_2 layer_scale_parameter layer_scalar"
)

# --- roles anywhere

BUFFERS = _words(
    "inv_freq original_inv_freq position_ids masked_bias num_batches_tracked relative_position_index token_type_ids "
    "cos_cached sin_cached causal_mask attn_mask summary_idxs _float_tensor version final_logits_bias freqs "
    "freqs_cis rope_freqs relative_coords_table cluster_size embed_avg inited initialized cluster_usage "
    "rotary_emb rotary_pos_emb"
)
NORM_TOKENS = _words("ln bn gn ln1 ln2 ln3 bn1 bn2 bn3 gn1 gn2 rms grn")
POSITION_TOKENS = _words("pos position positions positional wpe")
POSITIONS = _words(
    "relative_attention_bias rel_embeddings rel_pos_h rel_pos_w distance_embedding relative_k_proj r_w_bias r_r_bias "
    "r_kernel attention_biases relative_attn_bias relative_embedding"
)
EMBEDDING_TOKENS = _words("embed embeds embedding embeddings emb embedder embedders wte token_embd patch")
EMBEDDINGS = _words(
    "shared cls_token class_token mask_token dist_token distillation_token register_tokens reg_token query_tokens "
    "token_embd cls_tokens mask_tokens image_newline masked_spec_embed x_embedder img_in txt_in"
)
CONDITIONING = _words(
    "time_embed time_embedding t_embedder y_embedder timestep_embedder time_text_embed label_emb add_embedding "
    "adaln_modulation adaln modulation img_mod txt_mod adaln_single scale_shift_table time_emb_proj emb_layers "
    "time_in vector_in guidance_in t_block time_mlp context_refiner_adaln norm1_context_linear"
)
PROJECTORS = _words(
    "visual_projection text_projection multi_modal_projector mm_projector multimodal_projector connector merger "
    "patch_merger vision_proj text_proj image_projection vision_projection aligner projector modality_projection "
    "embed_vision embed_audio embedding_projection vision_projector audio_projection audio_projector "
    "language_projection deepstack_merger_list deepstack_mergers merger_list context_embedder abstractor "
    "resampler"
)
HEADS = _words(
    "lm_head embed_out generator_lm_head generator_predictions vocab_projector vocab_transform predictions "
    "output_projection pred_layer lm_predictions mlm_head lm_loss lm_heads vocab_layer_norm mlm"
)
PLAIN_HEADS = _words("head output decoder proj_out fc heads proj")
"""Outside the blocks: the language-model head where it has a row per token, else a task head (`TASK_HEADS`)."""
TASK_HEADS = _words(
    "score qa_outputs fc head heads pre_classifier classification_head seq_relationship sequence_summary summary "
    "regression_head reward_head v_head value_head bbox_embed class_embed bbox_predictor class_labels_classifier "
    "sop_classifier cls_head head_dist multi_choice span_outputs logits_proj label_projection "
    "pixel_classifier ctc_head"
)
TASK_HEAD_TOKENS = _words("classifier classification")
TOKEN_EMBEDDINGS = _words(
    "embed_tokens wte word_embeddings tok_embeddings embed_in shared embeddings embedding token_embedding "
    "tokens_embed word_embedding embeds token_embd"
)
"""Input embeddings: a row per token."""
POOLERS = _words("pooler attnpool pooled_projection sentence_pooler")
