"""Which tensors are linear maps to methods on matrices, and that these see outputs by inputs however a model stores them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.engine.continuing import plan_continued
from cuvee.methods.registry import MATRIX, NONE, edits, methods
from cuvee.statistics.networks import linear_maps

WIDTH, HEADS = 8, 2
GPT2 = {"model_type": "gpt2", "n_head": HEADS, "n_embd": WIDTH, "n_layer": 1, "vocab_size": 20}
MAPS = {
    "h.0.attn.c_attn.weight": (3 * WIDTH, WIDTH),
    "h.0.attn.c_proj.weight": (WIDTH, WIDTH),
    "h.0.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
    "h.0.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
}
OTHERS = {
    "wte.weight": (20, WIDTH),
    "wpe.weight": (16, WIDTH),
    "h.0.ln_1.weight": (WIDTH,),
    "h.0.ln_2.weight": (WIDTH,),
    "h.0.attn.c_attn.bias": (3 * WIDTH,),
}
LLAMA_NAMES = {
    "h.0.attn.c_attn.weight": "model.layers.0.mlp.gate_proj.weight",
    "h.0.attn.c_proj.weight": "model.layers.0.self_attn.o_proj.weight",
    "h.0.mlp.c_fc.weight": "model.layers.0.mlp.up_proj.weight",
    "h.0.mlp.c_proj.weight": "model.layers.0.mlp.down_proj.weight",
}
OTHER_NAMES = {"wte.weight": "model.embed_tokens.weight", "wpe.weight": "model.embed_positions.weight"}
NO_MODELS = {"copa_merging", "recall"}
ON_MATRICES = sorted(one.name for one in methods().values() if one.unit is MATRIX and one.name not in NO_MODELS)
EDITS = sorted(one.name for one in edits().values() if one.unit is MATRIX)
SETTINGS = {"drm": {"split_fused": False}, "opcm": {"continual": False}}


def drawn(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator).double() for name, shape in (MAPS | OTHERS).items()}


def as_gpt2(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Conv1D stores it: inputs by outputs."""
    return {name: value.mT.contiguous() if name in MAPS else value for name, value in model.items()}


def as_llama(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {(LLAMA_NAMES | OTHER_NAMES).get(name, name): value for name, value in model.items()}


def family() -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    base = drawn(0)
    return base, [{name: base[name] + change for name, change in drawn(k, 0.1).items()} for k in (1, 2, 3)]


@pytest.mark.parametrize("name", [*ON_MATRICES, *EDITS])
def test_a_linear_map_that_is_stored_turned_is_merged_as_the_map_it_is(name):
    base, experts = family()
    how = {"compute_dtype": "float64", **SETTINGS.get(name, {})}
    base_of = None if name in methods() and methods()[name].base is NONE else base
    turned = cuvee.merge_tensors(name, list(map(as_gpt2, experts)), base_of and as_gpt2(base_of), context=GPT2, **how)
    plain = cuvee.merge_tensors(name, list(map(as_llama, experts)), base_of and as_llama(base_of), **how)
    for own, other in LLAMA_NAMES.items():
        torch.testing.assert_close(turned[own], plain[other].mT, rtol=1e-9, atol=1e-9, msg=own)


def test_grams_of_a_model_that_stores_its_maps_turned_are_those_of_inputs():
    base, experts = family()
    name = "h.0.mlp.c_fc.weight"
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(3, 40, WIDTH, generator=generator).double()
    given = {f"gram/model{k}/{name}": one.mT @ one / len(one) for k, one in enumerate(inputs)}
    got = cuvee.merge_tensors(
        "bayesian_model_merging",
        list(map(as_gpt2, experts)),
        as_gpt2(base),
        statistics=given,
        context=GPT2,
        compute_dtype="float64",
        prior_precision=0.0,
        gram_norm="none",
    )[name].mT
    c = sum(given.values())
    want = sum(one[name] @ g for one, g in zip(experts, given.values(), strict=True)) @ torch.linalg.inv(c)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_masks_and_diagonals_lie_as_the_weights_do():
    base, experts = family()
    name = "h.0.mlp.c_fc.weight"
    fisher = {f"fisher/model{k}/{name}": torch.rand(MAPS[name]).double() + 0.1 for k in range(3)}
    how = {"compute_dtype": "float64", "objective": "diag_fisher"}
    turned = {key: one.mT.contiguous() for key, one in fisher.items()}
    got = cuvee.merge_tensors(
        "mats", list(map(as_gpt2, experts)), as_gpt2(base), statistics=turned, context=GPT2, **how
    )
    plain = {key.replace(name, LLAMA_NAMES[name]): one for key, one in fisher.items()}
    want = cuvee.merge_tensors("mats", list(map(as_llama, experts)), as_llama(base), statistics=plain, **how)
    torch.testing.assert_close(got[name].mT, want[LLAMA_NAMES[name]], rtol=0, atol=1e-9)


def write(folder: Path, model: dict[str, torch.Tensor], config: dict[str, object] = GPT2) -> str:
    folder.mkdir()
    save_file({name: value.float() for name, value in model.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_continual_merge_of_turned_maps_goes_on_where_it_was(tmp_path):
    base, experts = family()
    base_of, *folders = (write(tmp_path / f"m{n}", as_gpt2(one)) for n, one in enumerate((base, *experts)))
    cuvee.merge(cuvee.Recipe("opcm", models=folders, base_model=base_of), tmp_path / "all")
    cuvee.merge(cuvee.Recipe("opcm", models=folders[:2], base_model=base_of), tmp_path / "grown")
    cuvee.run(plan_continued(tmp_path / "grown", folders[2:]), tmp_path / "grown", overwrite=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("all", "grown"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("wpe.weight", {}),
        ("wte.weight", {}),
        ("classifier.weight", {"bert.encoder.layer.0.attention.self.query.weight": (8, 8)}),
        ("bert.embeddings.position_embeddings.weight", {"bert.encoder.layer.0.attention.self.query.weight": (8, 8)}),
    ],
)
def test_tables_and_heads_are_no_linear_maps(name, others):
    shapes = others or {**{one: (shape[1], shape[0]) for one, shape in MAPS.items()}, **OTHERS}
    config = {"model_type": "bert" if others else "gpt2", "hidden_size": 8, "num_attention_heads": 2}
    models = [{one: torch.randn(shape) for one, shape in {**shapes, name: (16, 8)}.items()} for _ in range(4)]
    got = cuvee.merge_tensors("tsv_m", models[1:], models[0], context=config)[name]
    torch.testing.assert_close(got, torch.stack([one[name] for one in models[1:]]).mean(0), rtol=0, atol=1e-5)
    as_matrix = cuvee.merge_tensors("tsv_m", models[1:], models[0], context=config, not_matrix=[])[name]
    assert not torch.allclose(as_matrix, got, atol=1e-2)


def test_a_plan_of_grams_knows_the_linear_maps_of_gpt2(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=WIDTH, n_head=HEADS, n_layer=1, vocab_size=20, n_positions=16)
    network = transformers.GPT2LMHeadModel(config)
    network.save_pretrained(tmp_path / "gpt2")
    maps = linear_maps(cuvee.open_model(tmp_path / "gpt2"), network, ["*"])
    assert {name.removeprefix("transformer.") + ".weight" for name in maps} == set(MAPS)
