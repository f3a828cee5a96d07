"""What is published loads in transformers and computes: a Llama, a tied Llama, a BERT and a ViT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import assert_equal, read_folder, write_model

import cuvee
from cuvee.recipes import Recipe

transformers = pytest.importorskip("transformers")

METHODS = {"linear": {}, "ties": {"density": 0.5}, "slerp": {"t": 0.4}}


def llama(**settings):
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=48,
        max_position_embeddings=64,
        **settings,
    )
    return transformers.LlamaForCausalLM(config)


def bert():
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=48, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


TOKENS = {"input_ids": torch.tensor([[1, 5, 9, 2, 40]])}
IMAGE = {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}
KINDS = {
    "llama": (llama, TOKENS),
    "tied llama": (lambda: llama(tie_word_embeddings=True), TOKENS),
    "bert": (bert, TOKENS),
    "vit": (vit, IMAGE),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A base and two fine-tunes of each kind, as transformers saves them."""
    root = tmp_path_factory.mktemp("zoo")
    for number, (kind, (make, _)) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        base = make()
        start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        for name in ("base", "one", "two"):
            if name != "base":
                with torch.no_grad():
                    for key, parameter in base.named_parameters():
                        parameter.copy_(start[key] + 0.02 * torch.randn(parameter.shape))
            base.save_pretrained(root / kind / name)
        (root / kind / "base" / "tokenizer_config.json").write_text('{"kept": true}')
    return root


def recipe(method: str, folder: Path) -> Recipe:
    if method == "slerp":
        return Recipe(method, models=[folder / "one", folder / "two"], parameters=METHODS[method])
    base = folder / "base" if method != "linear" else None
    return Recipe(method, models=[folder / "one", folder / "two"], base_model=base, parameters=METHODS[method])


def load(kind: str, folder: Path):
    """Load by transformers, which must find every weight, and no others."""
    model_class = type(KINDS[kind][0]())
    model, said = model_class.from_pretrained(folder, output_loading_info=True)
    problems = {key: found for key, found in said.items() if found}
    assert not problems, problems
    return model.eval()


def compute(kind: str, model) -> torch.Tensor:
    with torch.no_grad():
        return model(**KINDS[kind][1]).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_loads_and_computes_what_the_merged_weights_say(kind, method, zoo, tmp_path):
    folder, out = zoo / kind, tmp_path / "out"
    cuvee.merge(recipe(method, folder), out)
    states = [read_folder(folder / name) for name in ("base", "one", "two")]
    base = states[0] if method == "ties" else None
    expected = cuvee.merge_tensors(method, states[1:], base, **METHODS[method])
    assert_equal(read_folder(out), expected)

    # The same merge of what transformers has loaded, under whatever names it gives the weights.
    merged, one, two, start = (load(kind, path) for path in (out, folder / "one", folder / "two", folder / "base"))
    base = start.state_dict() if method == "ties" else None
    by_hand = cuvee.merge_tensors(method, [one.state_dict(), two.state_dict()], base, **METHODS[method])
    loaded = merged.state_dict()
    assert loaded.keys() - by_hand.keys() <= {"lm_head.weight"}  # left away where it is the embedding
    torch.testing.assert_close({name: loaded[name] for name in by_hand}, by_hand, rtol=0, atol=0)
    logits = compute(kind, merged)
    assert torch.isfinite(logits).all()
    assert all(not torch.equal(logits, compute(kind, end)) for end in (one, two, start))


def test_equal_models_compute_what_the_model_computes(zoo, tmp_path):
    for kind in KINDS:
        one = zoo / kind / "one"
        copy = tmp_path / kind / "copy"
        write_model(copy, read_folder(one), json.loads((one / "config.json").read_text()))
        cuvee.merge(Recipe("linear", models=[one, copy]), tmp_path / kind / "out")
        assert_equal(read_folder(tmp_path / kind / "out"), read_folder(one))
        logits = [compute(kind, load(kind, folder)) for folder in (one, tmp_path / kind / "out")]
        torch.testing.assert_close(*logits)


def test_a_tied_head_stays_tied_and_is_merged_once(zoo, tmp_path):
    folder = zoo / "tied llama"
    cuvee.merge(recipe("ties", folder), tmp_path / "out")
    assert "lm_head.weight" not in read_folder(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    model = load("tied llama", tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_and_an_untied_model_give_an_untied_one(zoo, tmp_path):
    folder = zoo / "tied llama"
    tied = read_folder(folder / "one")
    config = json.loads((folder / "one" / "config.json").read_text())
    head = tied["model.embed_tokens.weight"] + 1
    write_model(tmp_path / "untied", {**tied, "lm_head.weight": head}, {**config, "tie_word_embeddings": False})
    cuvee.merge(Recipe("linear", models=[folder / "one", tmp_path / "untied"]), tmp_path / "out")
    merged = read_folder(tmp_path / "out")
    torch.testing.assert_close(merged["lm_head.weight"], tied["model.embed_tokens.weight"] + 0.5)
    model = load("llama", tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, merged["lm_head.weight"])


def test_integer_and_boolean_buffers_are_copied_from_the_base(zoo, tmp_path):
    for number, name in enumerate(("base", "one", "two")):
        tensors = read_folder(zoo / "bert" / name)
        tensors["steps"] = torch.arange(5) + number
        tensors["mask"] = torch.tensor([number == 0, True])
        write_model(tmp_path / name, tensors, json.loads((zoo / "bert" / name / "config.json").read_text()))
    cuvee.merge(recipe("ties", tmp_path), tmp_path / "out")
    merged = read_folder(tmp_path / "out")
    assert merged["steps"].tolist() == [0, 1, 2, 3, 4] and merged["steps"].dtype is torch.int64
    assert merged["mask"].tolist() == [True, True] and merged["mask"].dtype is torch.bool
    left_out = json.loads((tmp_path / "out" / "cuvee.json").read_text())["left_out"]
    assert set(left_out) == {"steps", "mask"}


def test_task_heads_that_differ_are_carried_from_the_base(zoo, tmp_path):
    for name, labels in (("base", 3), ("one", 3), ("two", 7)):
        tensors = read_folder(zoo / "bert" / name)
        tensors["classifier.weight"] = torch.full((labels, 16), float(labels))
        tensors["classifier.bias"] = torch.zeros(labels)
        write_model(tmp_path / name, tensors, json.loads((zoo / "bert" / name / "config.json").read_text()))
    cuvee.merge(recipe("ties", tmp_path), tmp_path / "out")
    merged = read_folder(tmp_path / "out")
    assert torch.equal(merged["classifier.weight"], torch.full((3, 16), 3.0))
    left_out = json.loads((tmp_path / "out" / "cuvee.json").read_text())["left_out"]
    assert set(left_out) == {"classifier.weight", "classifier.bias"}
    assert torch.isfinite(compute("bert", load("bert", tmp_path / "out"))).all()


@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_output_has_the_dtype_asked_for_and_config_says_so(dtype, said, zoo, tmp_path):
    recipe_of = recipe("ties", zoo / "llama")
    asked = Recipe(**{**vars(recipe_of), "out_dtype": dtype})
    cuvee.merge(recipe_of, tmp_path / "full")
    cuvee.merge(asked, tmp_path / "half")
    full, half = read_folder(tmp_path / "full"), read_folder(tmp_path / "half")
    assert_equal(half, {name: tensor.to(said) for name, tensor in full.items()})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert model.dtype is said


def test_files_beside_the_weights_are_carried_over(zoo, tmp_path):
    cuvee.merge(recipe("ties", zoo / "llama"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"kept": true}'
    assert (tmp_path / "out" / "generation_config.json").exists()
    assert "merged by" not in (tmp_path / "out" / "config.json").read_text()
