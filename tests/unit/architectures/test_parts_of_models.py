"""Which tensors belong to which part of a model of several parts, under the names that mergekit's recipes use."""

from __future__ import annotations

from typing import Any

import pytest
from families import HINTED, UNSEEN

from cuvee.architectures import describe, known_modules, split_by_module

PARTS: dict[str, dict[str, str]] = {
    "whisper": {"encoder": "model.encoder.", "decoder": "model.decoder."},
    "bart": {"encoder": "model.encoder.", "decoder": "model.decoder."},
    "t5": {"encoder": "encoder.", "decoder": "decoder.", "shared": "shared."},
    "clip": {"text_model": "text_model.", "vision_model": "vision_model."},
    "siglip": {"text": "text_model.", "vision": "vision_model."},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_what_stands_under_its_beginning(name: str, build: Any) -> None:
    case = (HINTED | UNSEEN)[name]
    model = build(case.config, case.model, dict(case.settings))
    owners = split_by_module(describe(model.shapes, model.config), model.shapes, list(PARTS[name]))
    for module, beginning in PARTS[name].items():
        assert {owners.get(tensor) for tensor in model.shapes if tensor.startswith(beginning)} == {module}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3 with vision"])
def test_vision_language_models_have_three_parts_and_every_tensor_belongs_to_one(name: str, build: Any) -> None:
    case = (HINTED | UNSEEN)[name]
    model = build(case.config, case.model, dict(case.settings))
    wanted = ["text_decoder", "vision_tower", "multi_modal_projector"]
    owners = split_by_module(describe(model.shapes, model.config), model.shapes, wanted)
    assert set(owners) == set(model.shapes)
    for tensor, module in owners.items():
        assert ("projector" in tensor or ".merger." in tensor) == (module == "multi_modal_projector"), tensor
        seeing = "vis" in tensor and module != "multi_modal_projector"
        assert seeing == (module == "vision_tower"), tensor


def test_what_no_wanted_part_claims_is_left_out(build: Any) -> None:
    case = (HINTED | UNSEEN)["llava"]
    model = build(case.config, case.model, dict(case.settings))
    owners = split_by_module(describe(model.shapes, model.config), model.shapes, ["text_decoder"])
    assert set(owners) == {name for name in model.shapes if "vision" not in name and "projector" not in name}


def test_a_head_outside_the_parts_is_the_decoders(build: Any) -> None:
    case = (HINTED | UNSEEN)["t5"]
    model = build(case.config, case.model, dict(case.settings))
    architecture = describe(model.shapes, model.config)
    assert split_by_module(architecture, ["shared.weight", "lm_head.weight"], ["encoder", "decoder"]) == {
        "shared.weight": "decoder",
        "lm_head.weight": "decoder",
    }
    assert known_modules(architecture) == ["decoder", "encoder"]
