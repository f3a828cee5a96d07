"""PEFT adapters: what is read must be what PEFT computes, whatever block is asked."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import assert_blocks_agree, read_model
from peft import IA3Config, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import Scratch
from cuvee.errors import CheckpointError, IncompatibleModels, Problems

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn about matters of their own
GOLDEN = Path(__file__).parents[2] / "golden" / "cases" / "peft_load"


class Tiny(nn.Module):
    """One layer of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 16, bias=False)
        self.square = nn.Linear(16, 16)
        self.conv1d_gpt = Conv1D(20, 16)
        self.conv = nn.Conv2d(3, 8, (3, 3))
        self.conv1x1 = nn.Conv2d(8, 6, (1, 1))
        self.conv_1d = nn.Conv1d(3, 8, 5)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_base(model: nn.Module, folder: Path, config: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def train(model: nn.Module) -> None:
    """Move everything that is trainable, as training would."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def adapt(tmp_path: Path, model: nn.Module, config: LoraConfig) -> tuple[dict[str, torch.Tensor], str]:
    """Save base and adapter; return what PEFT makes of them, and the reference."""
    torch.manual_seed(0)
    hf_config = model.config.to_dict() if hasattr(model, "config") else None
    save_base(model, tmp_path / "base", hf_config)
    adapted = get_peft_model(model, config)
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    return {name: t.detach() for name, t in merged.state_dict().items()}, f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"


LINEAR = ["fc1", "fc2", "square"]
CASES = {
    "plain": LoraConfig(r=4, lora_alpha=12, target_modules=LINEAR),
    "rank_stabilized": LoraConfig(r=4, lora_alpha=12, target_modules=LINEAR, use_rslora=True),
    "patterns": LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR, rank_pattern={"fc2": 2, "squ.*": 3}, alpha_pattern={"^fc1": 3}
    ),
    "dora": LoraConfig(r=4, target_modules=LINEAR, use_dora=True),
    "dora_rank_stabilized": LoraConfig(r=4, target_modules=LINEAR, use_dora=True, use_rslora=True),
    "embedding": LoraConfig(r=4, target_modules=["embed"]),
    "embedding_dora": LoraConfig(r=4, target_modules=["embed"], use_dora=True),
    "conv1d_of_gpt": LoraConfig(r=4, target_modules=["conv1d_gpt"], fan_in_fan_out=True),
    "conv1d_of_gpt_dora": LoraConfig(r=4, target_modules=["conv1d_gpt"], fan_in_fan_out=True, use_dora=True),
    "convolutions": LoraConfig(r=4, target_modules=["conv", "conv1x1", "conv_1d"]),
    "convolutions_dora": LoraConfig(r=4, target_modules=["conv", "conv1x1", "conv_1d"], use_dora=True),
    "modules_to_save": LoraConfig(r=4, target_modules=["fc1"], modules_to_save=["head"]),
    "all_biases": LoraConfig(r=4, target_modules=["fc1", "conv"], bias="all"),
    "lora_biases": LoraConfig(r=4, target_modules=["fc1"], bias="lora_only"),
    "bias_of_b": LoraConfig(r=4, target_modules=["fc1", "square"], lora_bias=True),
}


@pytest.mark.parametrize("name", CASES)
def test_adapted_model_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    config.init_lora_weights = True
    expected, reference = adapt(tmp_path, Tiny(), config)
    model = open_model(reference)
    got = read_model(model)
    assert got.keys() == expected.keys()
    for tensor, values in expected.items():
        torch.testing.assert_close(got[tensor], values, atol=2e-6, rtol=2e-6)
        assert_blocks_agree(model.tensors[tensor], got[tensor])
    changed = [t for t in got if not torch.equal(got[t], load_file(tmp_path / "base/model.safetensors")[t])]
    assert changed, "the adapter must change something"


@pytest.mark.parametrize("case", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_golden_cases_of_peft(case: Path, tmp_path: Path) -> None:
    params = json.loads((case / "case.json").read_text())
    inputs = load_file(case / "inputs.safetensors")
    for folder, prefix, file in (("base", "base/", "model"), ("adapter", "model0/", "adapter_model")):
        (tmp_path / folder).mkdir()
        tensors = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
        if folder == "adapter":
            tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / folder / f"{file}.safetensors")
    config = {"peft_type": "LORA", **params["params"]}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    got = read_model(open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"))
    for name, expected in load_file(case / "expected.safetensors").items():
        assert (got[name] - expected).abs().max() <= params["tolerance"] * max(1.0, expected.abs().max().item())


def test_large_rows_and_many_leaves_give_the_same_bytes_in_any_block(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(70_000, 3, bias=False)
            self.tall = nn.Linear(100, 1500, bias=False)

    expected, reference = adapt(tmp_path, Wide(), LoraConfig(r=2, target_modules=["wide", "tall"], use_dora=True))
    model = open_model(reference)
    for name, source in model.tensors.items():
        whole = source.read(0, expected[name].numel(), Scratch(), 0).clone().reshape(expected[name].shape)
        torch.testing.assert_close(whole, expected[name], atol=2e-6, rtol=2e-6)
        assert_blocks_agree(source, whole)


def test_low_precision_is_added_in_float32(tmp_path: Path) -> None:
    _, reference = adapt(tmp_path, Tiny().bfloat16(), LoraConfig(r=4, lora_alpha=4, target_modules=["fc1"]))
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    down, up = (adapter[f"base_model.model.fc1.lora_{x}.weight"].float() for x in "AB")
    base = load_file(tmp_path / "base/model.safetensors")["fc1.weight"].float()
    got = read_model(open_model(reference))["fc1.weight"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, base + up @ down)


def test_adapter_saved_as_bin_is_read(tmp_path: Path) -> None:
    expected, reference = adapt(tmp_path, Tiny(), LoraConfig(r=4, target_modules=["fc1"]))
    file = tmp_path / "adapter/adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter/adapter_model.bin")
    file.unlink()
    torch.testing.assert_close(read_model(open_model(reference))["fc1.weight"], expected["fc1.weight"])


@pytest.mark.parametrize("rename", ["lora_A.default.weight", "no_prefix", "twice_wrapped"])
def test_other_spellings_of_keys_mean_the_same(rename: str, tmp_path: Path) -> None:
    expected, reference = adapt(tmp_path, Tiny(), LoraConfig(r=4, target_modules=["fc1"], modules_to_save=["head"]))
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    if rename == "no_prefix":
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    elif rename == "twice_wrapped":
        tensors = {name.replace("base_model.model.", "base_model.model.model."): t for name, t in tensors.items()}
    else:
        tensors = {
            name.replace(".weight", ".default.weight") if "lora" in name else name: t for name, t in tensors.items()
        }
        tensors = {name.replace("head.", "head.modules_to_save.default."): t for name, t in tensors.items()}
    save_file(tensors, file)
    got = read_model(open_model(reference))
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values)


def test_adapters_can_be_stacked(tmp_path: Path) -> None:
    _, reference = adapt(tmp_path, Tiny(), LoraConfig(r=4, lora_alpha=4, target_modules=["fc1"]))
    shutil.copytree(tmp_path / "adapter", tmp_path / "second")
    base, once, twice = (
        read_model(open_model(r))["fc1.weight"]
        for r in (str(tmp_path / "base"), reference, f"{reference}+{tmp_path / 'second'}")
    )
    torch.testing.assert_close(twice - base, 2 * (once - base), atol=1e-6, rtol=1e-5)


# ---- transformers models


def tiny_llama(**kwargs: Any) -> LlamaConfig:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, **kwargs)


def test_gpt2_is_what_peft_merges(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=8))
    expected, reference = adapt(tmp_path, model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, values in read_model(open_model(reference)).items():
        torch.testing.assert_close(values, expected[name])


def test_new_classification_head_is_added(tmp_path: Path) -> None:
    save_base(LlamaForCausalLM(tiny_llama()), tmp_path / "base", tiny_llama().to_dict())
    tuned = LlamaForSequenceClassification(tiny_llama(num_labels=3, pad_token_id=0))
    base = load_file(tmp_path / "base/model.safetensors")
    tuned.load_state_dict({name: t for name, t in base.items() if name in tuned.state_dict()}, strict=False)
    adapted = get_peft_model(tuned, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    model = open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    got = read_model(model)
    assert got.keys() == base.keys() | {"score.weight"}
    torch.testing.assert_close(got["score.weight"], expected["score.weight"])
    torch.testing.assert_close(
        got["model.layers.0.self_attn.q_proj.weight"], expected["model.layers.0.self_attn.q_proj.weight"]
    )
    assert any("score.weight" in note for note in model.notes)


TIED = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved_embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", TIED)
def test_tied_model_computes_what_its_adapter_was_trained_to(name: str, tmp_path: Path) -> None:
    """Merged into a tied model, PEFT itself changes both uses; the adapter was trained on one of them."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(tiny_llama(tie_word_embeddings=True))
    save_base(model, tmp_path / "base", model.config.to_dict())
    adapted = get_peft_model(model, LoraConfig(r=2, **TIED[name]))
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(8)[None]
    expected = adapted(tokens).logits

    opened = open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert opened.config is not None and opened.config["tie_word_embeddings"] is False
    untied = LlamaForCausalLM(tiny_llama(tie_word_embeddings=False))
    untied.load_state_dict(read_model(opened))
    torch.testing.assert_close(untied(tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_tied_model_stays_tied_where_the_adapter_does_not_touch_the_tie(tmp_path: Path) -> None:
    model = LlamaForCausalLM(tiny_llama(tie_word_embeddings=True))
    _, reference = adapt(tmp_path, model, LoraConfig(r=2, target_modules=["q_proj"]))
    opened = open_model(reference)
    assert "lm_head.weight" not in opened.tensors
    assert opened.config is not None and opened.config["tie_word_embeddings"] is True


GROWN: list[tuple[bool, dict[str, Any]]] = [
    (True, {}),
    (False, {}),
    (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    (True, {"target_modules": ["embed_tokens"]}),
]


@pytest.mark.parametrize(("tied", "settings"), GROWN)
def test_grown_vocabularies_come_with_the_adapter(tied: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = LlamaForCausalLM(tiny_llama(tie_word_embeddings=tied))
    save_base(model, tmp_path / "base", model.config.to_dict())
    model.resize_token_embeddings(43)
    adapted = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings}))
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokens = torch.arange(35, 43)[None]
    expected = adapted(tokens).logits

    opened = open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert opened.config is not None
    still_tied = opened.config["tie_word_embeddings"]
    assert still_tied == (tied and not settings)
    assert any("another size" in note for note in opened.notes)
    merged = LlamaForCausalLM(
        tiny_llama(
            tie_word_embeddings=still_tied,
        )
    )
    merged.resize_token_embeddings(43)
    merged.load_state_dict(read_model(opened), strict=not still_tied)
    torch.testing.assert_close(merged(tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_trained_token_rows_replace_those_of_the_embedding(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 1])
    expected, reference = adapt(tmp_path, LlamaForCausalLM(tiny_llama()), config)
    model = open_model(reference)
    got = read_model(model)
    torch.testing.assert_close(got["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])
    assert_blocks_agree(model.tensors["model.embed_tokens.weight"], got["model.embed_tokens.weight"])


def test_names_without_the_wrapper_are_matched(tmp_path: Path) -> None:
    """An adapter trained on AutoModel says `layers.0`, the base of AutoModelForCausalLM `model.layers.0`."""
    expected, reference = adapt(tmp_path, LlamaForCausalLM(tiny_llama()), LoraConfig(r=2, target_modules=["q_proj"]))
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = {name.replace(".model.model.", ".model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    model = open_model(reference)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(read_model(model)[name], expected[name])
    assert any("'model.'" in note for note in model.notes)


# ---- refused


def write_pair(tmp_path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> str:
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    save_file({"fc.weight": torch.ones(6, 4), "fc.bias": torch.ones(6)}, tmp_path / "base/model.safetensors")
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    return f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"


def pair(module: str = "fc", rank: int = 2, rows: int = 6, columns: int = 4) -> dict[str, torch.Tensor]:
    down, up = torch.ones(rank, columns), torch.ones(rows, rank)
    return {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}


@pytest.mark.parametrize(
    ("kind", "config"),
    [("IA3", IA3Config(target_modules=["fc1"], feedforward_modules=[])), ("LOKR", LoKrConfig(target_modules=["fc1"]))],
)
def test_other_kinds_of_adapters_are_refused_by_name(kind: str, config: Any, tmp_path: Path) -> None:
    save_base(Tiny(), tmp_path / "base")
    get_peft_model(Tiny(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=kind):
        open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"layer_replication": [[0, 4]]}, "layer replication"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"use_hyperlora": True}, "use_hyperlora"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"r": 3}, "rank 2"),
        ({"lora_alpha": "much"}, "lora_alpha is much"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {"(a*)*b": 2}}, "forever"),
        ({"rank_pattern": {"(a|aa)+b": 2}}, "forever"),
        ({"alpha_pattern": {".*a.*a.*a": 2}}, "forever"),
        ({"rank_pattern": {"a?" * 30 + "a" * 30: 2}}, "forever"),
        ({"rank_pattern": {"(a|a)" * 30: 2}}, "forever"),
        ({"rank_pattern": ["fc"]}, "rank_pattern"),
        ({"modules_to_save": "head"}, "modules_to_save"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices"),
        ({"peft_type": None}, "unnamed kind"),
    ],
)
def test_settings_that_mean_something_else_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_model(write_pair(tmp_path, pair(), **config))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (pair("other"), "1 of 1 modules of the adapter"),
        (pair(rows=5), "is for a tensor of"),
        ({**pair(), "base_model.model.head.weight": torch.ones(2)}, "head.weight"),
        ({**pair(), "base_model.model.fc.bias": torch.ones(7)}, "is for a tensor of"),
        ({**pair(), **pair("model.fc")}, "two modules of the adapter change"),
    ],
)
def test_adapter_of_another_model_is_refused(tensors: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModels, match=said):
        open_model(write_pair(tmp_path, tensors))


def test_all_that_does_not_suit_is_said_together(tmp_path: Path) -> None:
    tensors = {**pair("other"), **pair("third"), **pair(rows=5), "base_model.model.fc.bias": torch.ones(7)}
    with pytest.raises(Problems) as caught:
        open_model(write_pair(tmp_path, tensors))
    assert len(caught.value.errors) == 3
    assert "other, third" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (dict(list(pair().items())[:1]), "not a pair of matrices"),
        ({**pair(), "base_model.model.fc.lora_down.weight": torch.ones(2)}, "another kind"),
        ({"lora_unet_fc.hada_w1_a": torch.ones(2, 2)}, "another kind"),
        ({**pair(), **{k.replace(".weight", ".other.weight"): v for k, v in pair().items()}}, "mean the same"),
        ({"base_model.model.fc.lora_A.weight": torch.ones(2, 4).to(torch.int8)}, "I8"),
        (
            {**{k.replace(".weight", ".a.weight"): v for k, v in pair().items()},
             **{k.replace(".weight", ".b.weight"): v for k, v in pair("model.fc").items()}},
            "2 adapters: a, b",
        ),
    ],
)  # fmt: skip
def test_damaged_adapter_files_are_refused(tensors: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_model(write_pair(tmp_path, tensors))


def test_adapter_alone_names_the_reference_that_works(tmp_path: Path) -> None:
    write_pair(tmp_path, pair(), base_model_name_or_path="org/base")
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path / "adapter")
    assert f"org/base+{tmp_path / 'adapter'}" in caught.value.right


def test_missing_adapter_files_are_named(tmp_path: Path) -> None:
    reference = write_pair(tmp_path, pair())
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        open_model(reference)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        open_model(f"{tmp_path / 'base'}+{tmp_path / 'base'}")
    with pytest.raises(CheckpointError, match="none of this name"):
        open_model(f"{tmp_path / 'base'}+{tmp_path / 'nowhere'}")


def test_a_row_that_becomes_zero_stays_zero_under_dora(tmp_path: Path) -> None:
    tensors = {**pair(), "base_model.model.fc.lora_magnitude_vector": torch.ones(6)}
    tensors["base_model.model.fc.lora_A.weight"] = -torch.ones(2, 4) / 2
    got = read_model(open_model(write_pair(tmp_path, tensors, use_dora=True)))
    assert torch.equal(got["fc.weight"], torch.zeros(6, 4))
