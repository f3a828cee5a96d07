"""What is collected of experts that lie in one parameter of the network, against what their layer computes."""

from __future__ import annotations

import json

import pytest
import torch
from dense_models import dense, save, write_tokenizer

import cuvee
from cuvee.checkpoints.sources import read_all
from cuvee.cli import main
from cuvee.errors import IncompatibleModels, ResourceError
from cuvee.statistics import collect_fisher, collect_gram, collect_outgram
from cuvee.statistics.experts import maps_of
from cuvee.statistics.networks import load_network

transformers = pytest.importorskip("transformers")

TEXTS = ["a b c d e f g h", "x y z p q"]
COUNT = 4
SIZES = {"num_hidden_layers": 1, "num_experts_per_tok": 2, "intermediate_size": 12, "num_local_experts": COUNT}
FAMILIES = {
    "mixtral": SIZES,
    "qwen3_moe": {**SIZES, "num_experts": COUNT, "moe_intermediate_size": 12},
    "gpt_oss": {**SIZES, "layer_types": ["full_attention"], "head_dim": 4},
}
LAYER = "model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    for family, sizes in FAMILIES.items():
        save(dense(family, seed=1, **sizes), root / family)
        write_tokenizer(root / family)
    return root


def stored(family, expert, part):
    """What the checkpoint calls the module that holds a matrix of an expert."""
    if family == "gpt_oss":
        return f"{LAYER}.{part}"
    if family == "mixtral":
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        return f"model.layers.0.block_sparse_moe.experts.{expert}.{names[part]}"
    return f"{LAYER}.{expert}.{part}"


def what_experts_are_given(folder, texts):
    """Return of each expert what goes into it, and into its second matrix, as (tokens, width); and what the router is given."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    given = []
    experts = network.get_submodule(LAYER)
    experts.register_forward_pre_hook(lambda _, args, named: given.append((*args, *named.values())), with_kwargs=True)
    with torch.no_grad():
        for text in texts:
            network(torch.tensor([words(text)["input_ids"]]))
        hidden = torch.cat([one[0].reshape(-1, one[0].shape[-1]) for one in given])
        chosen = torch.cat([one[1].reshape(-1, one[1].shape[-1]) for one in given])
        first = [hidden[(chosen == e).any(-1)] for e in range(COUNT)]
        if hasattr(experts, "_apply_gate") and hasattr(experts, "gate_up_proj_bias"):
            biased = zip(first, experts.gate_up_proj, experts.gate_up_proj_bias, strict=True)
            return first, [experts._apply_gate(x @ w + b) for x, w, b in biased], hidden
        pairs = [(x @ w.mT).chunk(2, -1) for x, w in zip(first, experts.gate_up_proj, strict=True)]
        return first, [experts.act_fn(gate) * up for gate, up in pairs], hidden


def gram(x):
    return x.double().mT @ x.double() / max(1, len(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gram_matrices_of_experts_are_of_the_tokens_that_reach_each(folders, family):
    found = collect_gram(cuvee.open_model(folders / family), TEXTS)
    first, second, hidden = what_experts_are_given(folders / family, TEXTS)
    for e in range(COUNT):
        if family == "gpt_oss":
            got = [found.tensors[f"gram/{stored(family, e, part)}"][e] for part in ("gate_up_proj", "down_proj")]
        else:
            got = [found.tensors[f"gram/{stored(family, e, part)}"] for part in ("gate_proj", "down_proj")]
            assert found.shared[f"gram/{stored(family, e, 'up_proj')}"] == f"gram/{stored(family, e, 'gate_proj')}"
        for one, x in zip(got, (first[e], second[e]), strict=True):
            torch.testing.assert_close(one.double(), gram(x), atol=1e-5, rtol=1e-4)
    router = {"mixtral": "block_sparse_moe.gate", "qwen3_moe": "mlp.gate", "gpt_oss": "mlp.router"}[family]
    got = found.tensors[f"gram/model.layers.0.{router}"]
    torch.testing.assert_close(got.double(), gram(hidden), atol=1e-5, rtol=1e-4)
    assert found.unreached == 2 * sum(not len(x) for x in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_collected_of_experts_is_what_mats_takes(folders, family):
    model = cuvee.open_model(folders / family)
    tensors = {name: read_all(one) for name, one in model.tensors.items()}
    other = {name: value + 0.1 for name, value in tensors.items()}
    for collect, objective in ((collect_fisher, "diag_fisher"), (collect_outgram, "block_fisher")):
        own = collect(model, TEXTS)
        given = {**own.tensors, **{name: own.tensors[of] for name, of in own.shared.items()}}
        given = {f"{k}/model{m}/{name}": v for m in range(2) for n, v in given.items() for k, name in [n.split("/", 1)]}
        experts = [name for name in tensors if ".experts" in name or ".gate." in name or ".router.weight" in name]
        experts = [name for name in experts if not name.endswith("_bias")]
        kinds = ("fisher",) if objective == "diag_fisher" else ("gram", "outgram")
        for name in experts:
            of = name if objective == "diag_fisher" else name.removesuffix(".weight")
            assert all(f"{kind}/model0/{of}" in given for kind in kinds)
        got = cuvee.merge_tensors(
            "mats", [tensors, other], statistics=given, objective=objective, context=model.config, iterations=1000
        )
        for name in experts:
            torch.testing.assert_close(got[name], tensors[name] + 0.05, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_information_of_one_token_is_the_product_of_what_goes_in_and_what_comes_out(folders, family):
    model = cuvee.open_model(folders / family)
    both, fisher = (collect(model, ["a"]) for collect in (collect_outgram, collect_fisher))
    known = {**both.tensors, **{name: both.tensors[of] for name, of in both.shared.items()}}
    experts = [name for name in fisher.tensors if "experts" in name and not name.endswith("_bias")]
    assert len(experts) == (2 if family == "gpt_oss" else 3 * COUNT)
    for name in experts:
        module = name.removeprefix("fisher/").removesuffix(".weight")
        given, answered = (known[f"{kind}/{module}"].diagonal(dim1=-2, dim2=-1) for kind in ("gram", "outgram"))
        if family == "gpt_oss":
            given, answered = answered, given
        want = answered[..., :, None] * given[..., None, :]
        torch.testing.assert_close(fisher.tensors[name], want, rtol=1e-3, atol=1e-7)
    assert sum(bool(fisher.tensors[name].any()) for name in experts) == (2 if family == "gpt_oss" else 6)


def test_experts_that_no_token_reaches_are_counted_and_a_merge_leaves_them_at_the_anchor(folders, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a\n")
    for k, flag in enumerate(([], ["--json"])):
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "collect",
                    "gram",
                    str(folders / "gpt_oss"),
                    str(tmp_path / "texts.txt"),
                    str(tmp_path / f"{k}.st"),
                    *flag,
                ]
            )
        assert not ended.value.code
        said = capsys.readouterr().out
        assert json.loads(said)["unreached"] == 4 if flag else "experts that no token reached: 4" in said
    base, expert = (cuvee.open_model(folders / "gpt_oss") for _ in range(2))
    name = f"{LAYER}.down_proj"
    start = {key: read_all(one) for key, one in base.tensors.items()}
    moved = [{**start, name: start[name] + size} for size in (0.1, 0.3)]
    found = collect_gram(expert, ["a"])
    given = {f"gram/model{k}/{name}": found.tensors[f"gram/{name}"] for k in range(2)}
    how = {"context": base.config, "statistics": given, "anchor": "zero", "prior_precision": 1e-6}
    got = cuvee.merge_tensors("bayesian_model_merging", moved, start, **how)[name] - start[name]
    reached = found.tensors[f"gram/{name}"].flatten(1).any(1)
    assert reached.sum() == 2
    assert not got[~reached].any() and got[reached].flatten(1).any(1).all()


def test_only_experts_may_be_asked_for(folders):
    name = stored("qwen3_moe", 1, "up_proj")
    found = collect_outgram(cuvee.open_model(folders / "qwen3_moe"), TEXTS, only=[name])
    assert set(found.tensors) == {f"gram/{name}", f"outgram/{name}"} and not found.shared
    found = collect_gram(cuvee.open_model(folders / "gpt_oss"), TEXTS, only=["*.experts.down_proj"])
    assert list(found.tensors) == [f"gram/{LAYER}.down_proj"]
    with pytest.raises(IncompatibleModels, match="no such linear maps"):
        collect_gram(cuvee.open_model(folders / "gpt_oss"), TEXTS, only=["*.experts.3.*"])


def test_experts_that_are_computed_in_no_known_way_are_refused(folders, monkeypatch):
    model = cuvee.open_model(folders / "gpt_oss")
    monkeypatch.setattr("cuvee.statistics.experts._PRODUCTS", ())
    with pytest.raises(IncompatibleModels, match=r"how transformers computes the experts in .* is not known"):
        collect_gram(model, TEXTS)
    network = load_network(model)
    monkeypatch.setattr(type(network), "set_experts_implementation", None)
    with pytest.raises(ResourceError, match="newer transformers"):
        maps_of(model, network, ["*"])
