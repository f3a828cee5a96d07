"""Configs of mixtures: mergekit's files run unchanged, and what is wrong is said together, each at its place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cuvee.errors import CuveeError, Problems
from cuvee.moe import load_moe_config, parse_moe_config
from cuvee.moe.layouts import named_layouts

CLOWN_CAR = """
base_model: path/to/self_attn_donor
gate_mode: hidden # one of "hidden", "cheap_embed", or "random"
dtype: bfloat16 # output dtype (float32, float16, or bfloat16)
experts:
  - source_model: expert_model_1
    positive_prompts:
      - "This is a prompt that is demonstrative of what expert_model_1 excels at"
    negative_prompts:
      - "This is a prompt expert_model_1 should not be used for"
  - source_model: expert_model_2
    positive_prompts: ["[Genres: Science Fiction]\\n[Tags: humor, old school, sci fi]", "> get ye flask"]
shared_experts:
  - source_model: model_name
    positive_prompts:
      - "blah blah"
    residual_scale: 0.1
"""


def problems(text: str) -> list[CuveeError]:
    with pytest.raises(CuveeError) as raised:
        parse_moe_config(text, name="moe.yml")
    return list(raised.value.errors) if isinstance(raised.value, Problems) else [raised.value]


def said(text: str) -> list[tuple[str, str]]:
    return [(error.found, error.where) for error in problems(text)]


def test_mergekits_example_means_what_it_says():
    config = parse_moe_config(CLOWN_CAR)
    assert (config.base_model, config.gate_mode, config.dtype) == ("path/to/self_attn_donor", "hidden", "bfloat16")
    assert [one.source_model for one in config.entries] == ["expert_model_1", "expert_model_2", "model_name"]
    assert config.experts[1].positive_prompts[1] == "> get ye flask"
    assert config.experts_per_token == 2
    assert config.shared_experts[0].residual_scale == 0.1
    assert config.notes == ()


def test_a_model_may_be_a_mapping_with_an_adapter():
    config = parse_moe_config(
        "base_model: {path: org/base, revision: v1}\ngate_mode: random\n"
        "experts: [{source_model: {model: org/base, lora: org/math}}, org/code]\n"
    )
    assert config.base_model == "org/base@v1"
    assert [one.source_model for one in config.experts] == ["org/base+org/math", "org/code"]


def test_all_errors_are_said_together_each_at_its_line_column_and_key():
    text = """base_model: b
gate_mod: hidden
gate_mode: hiden
dtype: bfloat17
architecture: mixtrall
experts_per_token: 3
expert_layout: packed
experts:
  - source_model: a
    positive_prompt: [x]
    positive_prompts: [x, 42]
    residual_scale: big
  - source_model: c
    positive_prompts: text
"""
    found = {where: (error.found, error.right) for error in problems(text) for where in [error.where]}
    assert found["moe.yml:2:1 (gate_mod)"] == ("unknown key 'gate_mod'", "did you mean 'gate_mode'?")
    assert found["moe.yml:3:1 (gate_mode)"] == ("unknown gate_mode 'hiden'", "did you mean 'hidden'?")
    assert found["moe.yml:4:1 (dtype)"] == ("unknown dtype 'bfloat17'", "did you mean 'bfloat16'?")
    assert found["moe.yml:5:1 (architecture)"] == ("no layout is called 'mixtrall'", "did you mean 'Mixtral'?")
    assert found["moe.yml:6:1 (experts_per_token)"][0] == "experts_per_token is 3, and there are 2 experts"
    assert found["moe.yml:7:1 (expert_layout)"][0] == "unknown expert_layout 'packed'"
    assert found["moe.yml:10:5 (experts.0.positive_prompt)"][1] == "did you mean 'positive_prompts'?"
    assert found["moe.yml:11:27 (experts.0.positive_prompts.1)"][0] == "the prompt is 42, not a text"
    assert found["moe.yml:12:5 (experts.0.residual_scale)"][0] == "residual_scale is 'big'"
    assert found["moe.yml:14:5 (experts.1.positive_prompts)"][0] == "positive_prompts is text, not a list of texts"
    assert len(found) == len(problems(text)) == 10


def test_equal_prompts_for_all_experts_are_refused():
    text = "base_model: b\nexperts:\n" + 3 * "  - {source_model: m, positive_prompts: [same]}\n"
    ((found, where),) = said(text)
    assert found.startswith("the prompts are the same for all experts")
    assert where == "moe.yml:2:1 (experts)"


def test_equal_prompts_for_two_of_three_are_warned_of():
    prompts = ("[same]", "[other]", "[same]")
    text = "base_model: b\nexperts:\n" + "".join(f"  - {{source_model: {p}, positive_prompts: {p}}}\n" for p in prompts)
    text = text.replace("source_model: [", "source_model: m").replace("],", ",")
    (note,) = parse_moe_config(text, name="moe.yml").notes
    assert note == "moe.yml:5:5 (experts.2): experts 0 and 2 have the same prompts: the router cannot tell them apart"


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed", "router_input"])
def test_an_expert_without_prompts_is_refused_where_gates_are_made_of_them(mode):
    text = f"base_model: b\ngate_mode: {mode}\nexperts: [{{source_model: m, positive_prompts: [x]}}, n]\n"
    ((found, where),) = said(text)
    assert found.startswith("expert 1 has no positive_prompts")
    assert where == "moe.yml:3:53 (experts.1)"


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
def test_drawn_gates_need_no_prompts_and_say_so(mode):
    text = f"base_model: b\ngate_mode: {mode}\nexperts: [{{source_model: m, positive_prompts: [x]}}, n]\n"
    (note,) = parse_moe_config(text).notes
    assert "prompts have no effect" in note


def test_too_few_experts_are_counted():
    ((found, _),) = said("base_model: b\ngate_mode: random\nexperts: [m]\n")
    assert found == "experts_per_token is 2, and there is 1 expert"
    assert parse_moe_config("base_model: b\ngate_mode: random\nexperts: [m]\nexperts_per_token: 1\n")


def test_what_is_missing_is_said_once():
    assert [found for found, _ in said("{}")] == ["there is no base_model", "there are no experts"]
    assert [found for found, _ in said("base_modle: b\ngate_mode: random\nexperts: [m, n]")] == [
        "unknown key 'base_modle'"
    ]
    text = "base_model: b\ngate_mode: random\nexperts: [{source_modle: m}, {noise_scale: -1}]"
    assert [found for found, _ in said(text)] == [
        "unknown key 'source_modle'",
        "the expert names no model",
        "noise_scale is -1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "experts: 3",
        "base_model: [",
        "base_model: b\nexperts: {a: b}",
        "\tx: 1",
        "a: 1\n---\nb: 2",
        "base_model: ~\nexperts: ~",
    ],
)
def test_no_text_makes_a_traceback(text):
    assert problems(text)


def test_a_missing_file_is_an_error_of_the_config(tmp_path):
    with pytest.raises(CuveeError, match="cannot be read"):
        load_moe_config(tmp_path / "none.yml")


def test_all_experts_the_same_model_is_warned_of():
    config = parse_moe_config("base_model: b\ngate_mode: random\nexperts: [m, m, m]\n")
    assert "all experts are the same model" in config.notes[0]


def test_layouts_are_chosen_by_the_beginning_of_their_names():
    titles = {
        name: [one.title for one in named_layouts(name)] for name in ("mix", "Qwen", "qwen3", "deepseek moe", "x")
    }
    assert titles == {
        "mix": ["Mixtral"],
        "Qwen": ["Qwen MoE", "Qwen3 MoE"],
        "qwen3": ["Qwen3 MoE"],
        "deepseek moe": ["DeepSeek MoE"],
        "x": [],
    }


def test_errors_of_the_text_do_not_wait_for_torch(tmp_path):
    path = tmp_path / "moe.yml"
    path.write_text("base_model: b\n")
    code = (
        "import sys\nfrom cuvee.cli import main\ntry:\n"
        f"    main(['moe', {str(path)!r}, {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as ended:\n    assert ended.code == 2\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
