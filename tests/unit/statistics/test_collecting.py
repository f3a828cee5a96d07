"""What is collected of a model, against what the same model computes by other means."""

from __future__ import annotations

import json

import pytest
import torch
from dense_models import write_tokenizer

import cuvee
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sources import read_all
from cuvee.cli import main
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, RecipeError
from cuvee.evaluation.model_folders import load_model, save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.statistics import collect_gram, collect_hidden, read_texts, typical_texts
from cuvee.statistics.typical import cluster_centres

pytest.importorskip("transformers")

TEXTS = ["def f(x):\n    return x", "a line of some more bytes, so that it is cut " * 3, "z", "x = {1: 2}"]
SHAPE = Shape(hidden=16, intermediate=24, layers=2, heads=2, key_value_heads=1, context=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "model"
    save_model(TinyLlama(SHAPE, seed=3), path)
    return path


def seen_by_our_own_network(folder, modules, *, inputs):
    """Run the texts through our own network and return what goes into modules, or comes out, as one (tokens, width) a text."""
    network = load_model(folder)
    seen = {name: [] for name in modules}
    for name in modules:

        def hook(_, given, output, name=name):
            seen[name].append((given[0] if inputs else output).flatten(0, 1).double())

        network.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        for text in TEXTS:
            network(torch.tensor([list(text.encode())[: SHAPE.context]]))
    return seen


def test_hidden_states_are_the_mean_over_the_tokens_of_each_text_after_every_layer(folder):
    found = collect_hidden(cuvee.open_model(folder), TEXTS)
    seen = seen_by_our_own_network(folder, ["model.layers.0", "model.layers.1"], inputs=False)
    assert list(found.tensors) == ["hidden/model.layers.0", "hidden/model.layers.1"]
    for name, states in seen.items():
        wanted = torch.stack([one.mean(0) for one in states])
        torch.testing.assert_close(found.tensors[f"hidden/{name}"].double(), wanted, atol=1e-5, rtol=1e-5)
    assert (found.texts, found.tokens) == (4, sum(min(len(text), SHAPE.context) for text in TEXTS))


def test_gram_matrices_are_of_the_inputs_of_every_linear_map_and_shared_where_these_are(folder):
    found = collect_gram(cuvee.open_model(folder), TEXTS)
    names = [
        f"model.layers.{n}.{m}_proj" for n in range(2) for m in ("self_attn.q", "self_attn.o", "mlp.gate", "mlp.down")
    ]
    assert set(found.tensors) == {f"gram/{name}" for name in (*names, "lm_head")}
    shared = {f"gram/model.layers.{n}.{m}_proj" for n in range(2) for m in ("self_attn.k", "self_attn.v", "mlp.up")}
    assert set(found.shared) == shared
    assert found.shared["gram/model.layers.1.mlp.up_proj"] == "gram/model.layers.1.mlp.gate_proj"
    for name, inputs in seen_by_our_own_network(folder, names, inputs=True).items():
        x = torch.cat(inputs)
        torch.testing.assert_close(found.tensors[f"gram/{name}"].double(), x.mT @ x / len(x), atol=1e-5, rtol=1e-4)


def test_an_encoder_is_collected_under_the_names_of_its_checkpoint(tmp_path):
    import transformers

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 48,
    }
    torch.manual_seed(0)
    transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    model = cuvee.open_model(tmp_path)
    hidden, gram = (collect(model, ["a b c", "x y"]) for collect in (collect_hidden, collect_gram))
    assert list(hidden.tensors) == ["hidden/bert.encoder.layer.0", "hidden/bert.encoder.layer.1"]
    assert "gram/bert.encoder.layer.1.output.dense" in gram.tensors
    assert {f"{name.removeprefix('gram/')}.weight" for name in gram.tensors} <= set(model.tensors)


def test_an_adapter_is_part_of_the_model_that_is_run(tmp_path, folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["down_proj"])
    )
    for name, value in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    network.save_pretrained(tmp_path / "adapter")
    plain, adapted = (
        collect_hidden(cuvee.open_model(one), TEXTS).tensors["hidden/model.layers.1"]
        for one in (str(folder), f"{folder}+{tmp_path / 'adapter'}")
    )
    assert (plain - adapted).abs().max() > 0.01


def test_written_statistics_are_read_by_every_name(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    arguments = [
        "collect",
        "gram",
        str(folder),
        str(tmp_path / "texts.jsonl"),
        str(path),
        "--only",
        "*.mlp.*",
        "--quiet",
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    _, stored, metadata = open_safetensors(path)
    wanted = collect_gram(cuvee.open_model(folder), TEXTS, only=["*.mlp.*"])
    assert set(stored) == set(wanted.tensors)
    assert all(torch.equal(read_all(stored[name]), wanted.tensors[name]) for name in stored)
    assert metadata["texts"] == wanted.digest
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2, "the file is there"


def test_typical_texts_are_one_of_each_cluster(folder):
    chosen = typical_texts(cuvee.open_model(folder), [*TEXTS, *TEXTS], count=3)
    assert len(chosen) == 3
    assert set(chosen) <= set(TEXTS)
    assert chosen == typical_texts(cuvee.open_model(folder), [*TEXTS, *TEXTS], count=3)


def test_clusters_that_lie_apart_are_found_and_equal_points_make_no_trouble():
    where = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    points = torch.cat([where, where + 0.1, where - 0.1])
    assert {tuple(centre.tolist()) for centre in cluster_centres(points, 3).round()} == {(0, 0), (9, 0), (0, 9)}
    assert cluster_centres(torch.ones(4, 2), 3).isfinite().all()


def test_texts_are_lines_or_json_values(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \r\n")
    (tmp_path / "a.jsonl").write_text('"one"\n{"text": "t\\nwo", "other": 1}\n')
    assert read_texts(tmp_path / "a.txt") == ["one", " two "]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "t\nwo"]
    for name, content in {
        "b.jsonl": b"{}",
        "c.jsonl": b"[",
        "d.txt": b"\n \n",
        "e.txt": b"\xff",
        "f.jsonl": b'{"text": 3}',
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecipeError):
            read_texts(tmp_path / name)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"architectures": ["NoSuchThing"]}, IncompatibleModels, "names no architecture"),
        ({"architectures": ["__import__"]}, IncompatibleModels, "names no architecture"),
        ({"architectures": 3}, IncompatibleModels, "names no architecture"),
        ({"is_encoder_decoder": True}, IncompatibleModels, "encoder with a decoder"),
        ({"num_hidden_layers": 3}, IncompatibleModels, "are missing"),
        ({"intermediate_size": 8}, IncompatibleModels, "cannot make a|another shape"),
        ({"model_type": "none"}, IncompatibleModels, "cannot make a"),
    ],
)
def test_a_model_that_transformers_does_not_load_is_refused_in_words(tmp_path, folder, change, error, said):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=said):
        collect_hidden(cuvee.open_model(tmp_path), ["a"])


def test_a_model_without_tokenizer_or_with_nan_is_refused(tmp_path, folder):
    network = load_model(folder)
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    save_model(network, tmp_path / "model")
    with pytest.raises(CheckpointError, match="NaN"):
        collect_gram(cuvee.open_model(tmp_path / "model"), ["a"])
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        collect_hidden(cuvee.open_model(tmp_path / "model"), ["a"])
    with pytest.raises(CuveeError, match="no such linear maps"):
        collect_gram(cuvee.open_model(folder), ["a"], only=["nothing*"])


def test_a_network_that_reads_no_text_is_refused_and_a_missing_pooler_is_not_missed(tmp_path):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    pictures = transformers.ViTModel(
        transformers.ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False
    )
    pictures.save_pretrained(tmp_path / "vit")
    with pytest.raises(IncompatibleModels, match="reads no text"):
        collect_hidden(cuvee.open_model(tmp_path / "vit"), ["a"])
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=48), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    write_tokenizer(tmp_path)
    assert list(collect_hidden(cuvee.open_model(tmp_path), ["a b"]).tensors) == ["hidden/encoder.layer.0"]
