"""Fisher information, against sums over all that a model could have predicted."""

from __future__ import annotations

import pytest
import torch
from dense_models import write_tokenizer

import cuvee
from cuvee.errors import IncompatibleModels
from cuvee.evaluation.model_folders import load_model, save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.statistics import collect_fisher, collect_gram, collect_outgram

transformers = pytest.importorskip("transformers")

TEXTS = ["a b c", "x y"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 48}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("gradients") / "classifier"
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_labels=3, initializer_range=0.5)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gradients") / "model"
    save_model(
        TinyLlama(Shape(hidden=8, intermediate=12, layers=1, heads=2, key_value_heads=1, context=8), seed=3), path
    )
    return path


def ids_of(path):
    words = transformers.AutoTokenizer.from_pretrained(path)
    return [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]


def test_of_a_classifier_it_is_the_expectation_over_all_classes(classifier):
    network = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    wanted = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for ids in ids_of(classifier):
        for label in range(3):
            p = network(input_ids=ids).logits[0].softmax(0)[label]
            network.zero_grad()
            p.log().backward()
            for name, value in network.named_parameters():
                wanted[name] += float(p.detach()) * value.grad**2 / len(TEXTS)
    found = collect_fisher(cuvee.open_model(classifier), TEXTS)
    assert {f"fisher/{name}" for name in wanted} == set(found.tensors)
    for name, value in wanted.items():
        torch.testing.assert_close(found.tensors[f"fisher/{name}"], value.detach(), rtol=1e-4, atol=1e-7)
    only = collect_fisher(cuvee.open_model(classifier), TEXTS, only=["classifier.*"])
    assert set(only.tensors) == {"fisher/classifier.weight", "fisher/classifier.bias"}
    assert torch.equal(only.tensors["fisher/classifier.weight"], found.tensors["fisher/classifier.weight"])


def test_of_a_classifier_the_gradients_of_outputs_are_expected_over_all_classes(classifier):
    network = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    total, tokens = torch.zeros(3, 3), 0
    for ids in ids_of(classifier):
        p = network(input_ids=ids).logits[0].softmax(0).detach()
        total += torch.diag(p) - torch.outer(p, p)  # E (e_y − p)(e_y − p)ᵀ, at the one output of a text
        tokens += 1
    found = collect_outgram(cuvee.open_model(classifier), TEXTS)
    torch.testing.assert_close(found.tensors["outgram/classifier"], total / tokens, rtol=1e-4, atol=1e-7)
    gram = collect_gram(cuvee.open_model(classifier), TEXTS)
    for name, value in gram.tensors.items():
        torch.testing.assert_close(found.tensors[name], value)
    assert gram.shared.items() <= found.shared.items()
    diagonal = collect_fisher(cuvee.open_model(classifier), TEXTS, only=["classifier.bias"]).tensors
    torch.testing.assert_close(diagonal["fisher/classifier.bias"], found.tensors["outgram/classifier"].diagonal())


def test_of_a_language_model_the_mean_of_many_draws_is_the_expectation(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, initializer_range=0.7)
    network = transformers.LlamaForCausalLM(config).eval()
    network.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    wanted = torch.zeros_like(network.lm_head.weight)
    for ids in ids_of(tmp_path):
        x = network.model(input_ids=ids).last_hidden_state[0].detach()
        p = network(input_ids=ids).logits[0].softmax(-1).detach()
        wanted += torch.einsum("tv,td->vd", p * (1 - p), x**2) / len(TEXTS)  # ∂ log p(y) / ∂W = (e_y − p) xᵀ
    model, key = cuvee.open_model(tmp_path), "fisher/lm_head.weight"
    found = collect_fisher(model, TEXTS, only=["lm_head.weight"], draws=100).tensors
    assert list(found) == [key]
    assert (found[key] - wanted).norm() < 0.25 * wanted.norm()
    one, same = (collect_fisher(model, TEXTS, only=["lm_head.weight"]).tensors[key] for _ in range(2))
    assert torch.equal(one, same)
    assert (one - wanted).norm() > (found[key] - wanted).norm()


def test_what_is_collected_is_what_mats_takes(language_model):
    model = cuvee.open_model(language_model)
    tensors = load_model(language_model).state_dict()
    other = {name: value + 0.1 for name, value in tensors.items()}
    for collect, objective in ((collect_fisher, "diag_fisher"), (collect_outgram, "block_fisher")):
        own = collect(model, TEXTS)
        given = {**own.tensors, **{name: own.tensors[of] for name, of in own.shared.items()}}
        given = {f"{k}/model{m}/{name}": v for m in range(2) for n, v in given.items() for k, name in [n.split("/", 1)]}
        got = cuvee.merge_tensors("mats", [tensors, other], statistics=given, objective=objective)
        name = "model.layers.0.mlp.up_proj.weight"
        torch.testing.assert_close(got[name], tensors[name] + 0.05, atol=1e-3, rtol=0)


def test_a_network_without_predictions_and_a_pattern_that_matches_nothing_are_refused(tmp_path, language_model):
    transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    for collect in (collect_fisher, collect_outgram):
        with pytest.raises(IncompatibleModels, match="predicts nothing"):
            collect(cuvee.open_model(tmp_path), ["a"])
        with pytest.raises(IncompatibleModels, match="no such"):
            collect(cuvee.open_model(language_model), ["a"], only=["nothing*"])
