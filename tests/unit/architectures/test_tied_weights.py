"""Names that stand for one tensor."""

from __future__ import annotations

from typing import Any

import pytest

from cuvee.architectures import describe

Shapes = dict[str, tuple[int, ...]]


def llama(*, head: bool = True, embedding: bool = True, prefix: str = "", head_rows: int = 60) -> Shapes:
    shapes: Shapes = {}
    if embedding:
        shapes[f"{prefix}model.embed_tokens.weight"] = (60, 8)
    for i in range(2):
        shapes[f"{prefix}model.layers.{i}.mlp.up_proj.weight"] = (16, 8)
        shapes[f"{prefix}model.layers.{i}.mlp.down_proj.weight"] = (8, 16)
    if head:
        shapes[f"{prefix}lm_head.weight"] = (head_rows, 8)
    return shapes


TIED = {"lm_head.weight": "model.embed_tokens.weight"}
CAUSAL = {"architectures": ["LlamaForCausalLM"]}


def test_the_config_decides() -> None:
    assert describe(llama(), {"tie_word_embeddings": True}).tied == TIED
    assert describe(llama(), {"tie_word_embeddings": False}).tied == {}


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [("gemma", TIED), ("gemma2", TIED), ("cohere", TIED), ("llama", {}), ("qwen2", {}), ("unheard_of", {}), (None, {})],
)
def test_a_silent_config_means_the_default_of_its_family(model_type: str | None, tied: dict[str, str]) -> None:
    assert describe(llama(), {"model_type": model_type} if model_type else None).tied == tied


def test_a_language_model_without_a_head_has_a_tied_one() -> None:
    assert describe(llama(head=False), CAUSAL).tied == TIED
    assert describe(llama(head=False), {**CAUSAL, "tie_word_embeddings": True}).tied == TIED
    assert describe(llama(head=False), {**CAUSAL, "tie_word_embeddings": False}).tied == {}


def test_a_bare_model_has_no_head_to_tie() -> None:
    assert describe(llama(head=False), {"architectures": ["LlamaModel"], "tie_word_embeddings": True}).tied == {}
    assert describe(llama(head=False)).tied == {}


def test_a_file_that_kept_the_head_instead_of_the_embedding() -> None:
    tied = describe(llama(embedding=False), {"tie_word_embeddings": True}).tied
    assert tied == {"model.embed_tokens.weight": "lm_head.weight"}


def test_different_shapes_are_not_tied() -> None:
    assert describe(llama(head_rows=64), {"tie_word_embeddings": True}).tied == {}


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"text_config": {"model_type": "gemma2"}}, True),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        # What only the text part says may not be so: both are stored, and are taken for two tensors.
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
    ],
)
def test_the_text_part_of_a_config_speaks_for_the_language_model(config: dict[str, Any], tied: bool) -> None:
    found = describe(llama(prefix="language_model."), config).tied
    assert found == ({"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"} if tied else {})


def test_a_head_left_out_is_named_beside_its_model() -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "tie_word_embeddings": True}
    tied = describe(llama(head=False, prefix="language_model."), config).tied
    assert tied == {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}


def test_encoder_and_decoder_share_their_embedding_whether_stored_or_not() -> None:
    shapes: Shapes = {"shared.weight": (60, 8)}
    for side in ("encoder", "decoder"):
        for i in range(2):
            shapes[f"{side}.block.{i}.layer.0.SelfAttention.q.weight"] = (8, 8)
            shapes[f"{side}.block.{i}.layer.0.SelfAttention.k.weight"] = (8, 8)
    sides = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}
    assert describe(shapes).tied == sides
    stored = shapes | dict.fromkeys(sides, (60, 8)) | {"lm_head.weight": (60, 8)}
    assert describe(stored, {"model_type": "t5"}).tied == {**sides, "lm_head.weight": "shared.weight"}
    assert describe(stored, {"model_type": "t5", "tie_word_embeddings": False}).tied == sides
