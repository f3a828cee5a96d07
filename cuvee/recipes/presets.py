"""Presets: recipes that studies have found good, with the study and places for the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.errors import RecipeError, nearest
from cuvee.methods.registry import Paper
from cuvee.recipes.preset_form import Blend, Place, Preset, recipe_text
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.yaml_form import parse_recipe

__all__ = ["PRESETS", "find_preset", "preset"]

_SLERP = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
_ALL = (
    Preset(
        "agents",
        Paper("Behavior Knowledge Merge in Reinforced Agentic Models", arxiv="2601.13572", year=2026),
        "agents that reinforcement learning made of one model, whose changes are sparse",
        "ram",
        (Place("agent", repeats=True),),
        "base",
        advice="store base and agents in one dtype: where they differ, everything counts as changed",
    ),
    Preset(
        "alignment-mix",
        Paper(
            "Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness",
            arxiv="2502.06876",
            year=2025,
        ),
        "experts in helpfulness, honesty and harmlessness of one aligned model",
        "breadcrumbs",
        (Place("aligned", {"weight": 0.33}, repeats=True),),
        "base",
        parameters={"density": 0.9, "gamma": 0.01},
        advice="the study found that damping outliers and pruning what is redundant helps, and goes on to a spectral "
        "method of its own; density and gamma are a start of ours, and the weights suit three experts",
    ),
    Preset(
        "analogy",
        Paper("Editing Models with Task Arithmetic", arxiv="2212.04089", year=2022),
        "a task without data: what `like` is to `known`, the output is to `near`",
        "task_arithmetic",
        (Place("near", {"weight": 1.0}), Place("like", {"weight": 1.0}), Place("known", {"weight": -1.0})),
        "base",
        parameters={"scaling": 0.5},
        advice="scaling is to be chosen on what little data there is, between 0.1 and 1",
    ),
    Preset(
        "at-scale",
        Paper("What Matters for Model Merging at Scale?", arxiv="2410.03617", year=2024),
        "up to eight experts of a large, instruction-tuned base",
        "task_arithmetic",
        (Place("expert", repeats=True),),
        "base",
        parameters={"normalize": True},
        advice="at tens of billions of parameters methods come out alike, and strong bases merge better: the mean is "
        "enough, and effort goes into choosing the experts",
    ),
    Preset(
        "chat-vector",
        Paper(
            "The Construction of Instruction-tuned LLMs in Finance without Instruction Data",
            arxiv="2409.19854",
            year=2024,
        ),
        "a model that was trained on a domain, and follows instructions",
        "task_arithmetic",
        (Place("instruct", {"weight": 1.0}), Place("domain", {"weight": 1.0})),
        "base",
        advice="the two task vectors should be almost orthogonal: cuvee compare says so",
    ),
    Preset(
        "checkpoints",
        Paper("Model Merging in Pre-training of Large Language Models", arxiv="2505.12082", year=2025),
        "the last checkpoints of one run, as if its learning rate had fallen",
        "pma",
        (Place("checkpoint", repeats=True),),
        parameters={"scheme": "sma"},
        advice="about ten at even distances, the oldest first",
    ),
    Preset(
        "clinical",
        Paper("A Modular Approach for Clinical SLMs (MediPhi)", arxiv="2505.10717", year=2025),
        "experts of a small instruct model, each blended back with it, then united",
        "breadcrumbs",
        (Place("expert", {"weight": 0.5}, repeats=True, blend=Blend("slerp", {"t": 0.5})),),
        "instruct",
        parameters={"density": 0.9, "gamma": 0.01},
        advice="one published expert was blended at 50 %, others may be otherwise; weight, density and gamma are a start "
        "of ours",
    ),
    Preset(
        "domain-slerp",
        Paper("Fine-tuning large language models for domain adaptation", arxiv="2409.03444", year=2024),
        "an instruct model and one trained on a domain, by the gradients that the study took over from practice",
        "slerp",
        (Place("domain"),),
        "instruct",
        parameters={"t": _SLERP},
        advice="gains were seen at 7 to 8 billion parameters, none at 1.7",
    ),
    Preset(
        "extrapolate",
        Paper("Model Extrapolation Expedites Alignment (ExPO)", arxiv="2404.16792", year=2024),
        "a model that preference training has aligned, moved further the way it went",
        "task_arithmetic",
        (Place("aligned", {"weight": 1.3}),),
        "sft",
        advice="weight is 1 + alpha; 0.3 is a start of ours: the best alpha differs from model to model and needs a "
        "validation set, from 0.1 up. Of several aligned models, the mean is moved: weights that sum to 1 + alpha",
    ),
    Preset(
        "forget",
        Paper("NegMerge: Sign-Consensual Weight Merging for Machine Unlearning", arxiv="2410.05583", year=2024),
        "a model that has forgotten what several fine-tunes have learned",
        "negmerge",
        (Place("learned", repeats=True),),
        "base",
        parameters={"scaling": 0.5},
        advice="the largest scaling at which other tasks keep 95 % of their scores",
    ),
    Preset(
        "fuse-chat",
        Paper("FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024),
        "chat models of one base",
        "sce",
        (Place("chat", repeats=True),),
        "base",
        parameters={"select_topk": 0.1},
        advice="for long reasoning, select_topk: 1, as fuse-reasoning has it",
    ),
    Preset(
        "fuse-reasoning",
        Paper("FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024),
        "long reasoners of one base, as FuseO1 has it",
        "sce",
        (Place("reasoner", repeats=True),),
        "base",
        parameters={"select_topk": 1.0},
        advice="two reasoners that reinforcement learning made apart (QwQ and R1) collapsed, in another study, unless their "
        "base was among the models",
    ),
    Preset(
        "in-the-wild",
        Paper("A Systematic Study of In-the-Wild Model Merging for Large Language Models", year=2025),
        "fine-tunes of different authors: of six methods only task arithmetic gained for sure",
        "task_arithmetic",
        (Place("expert", repeats=True),),
        "base",
        parameters={"normalize": True},
        advice="the mean of the task vectors; scaling above 1 goes further, at a risk",
    ),
    Preset(
        "instruct-transfer",
        Paper("Chat Vector", arxiv="2310.04799", year=2023),
        "a base that was trained on (a language, newer text), given what instruction tuning did to the old one",
        "task_arithmetic",
        (Place("new", {"weight": 1.0}), Place("instruct", {"weight": 1.0})),
        "old",
        advice="a smaller weight of the instruct model where the new base's language suffers",
    ),
    Preset(
        "languages",
        Paper("Mix Data or Merge Models? Optimizing for Diverse Multi-Task Learning", arxiv="2410.10801", year=2024),
        "fine-tunes of one model in one language each",
        "ties",
        (Place("language", {"weight": 1.0, "density": 0.5}, repeats=True),),
        "base",
        parameters={"normalize": True},
        advice="the study compares linear, slerp, ties and dare_ties, and merging beat mixing the data; density is a "
        "start of ours",
    ),
    Preset(
        "layer-swap",
        Paper("Layer Swapping for Zero-Shot Cross-Lingual Transfer in LLMs", arxiv="2410.01335", year=2024),
        "a skill learned in English, in another language",
        "layer_swapping",
        (Place("task"), Place("language")),
        advice="more language layers for a language with few resources",
    ),
    Preset(
        "long-to-short",
        Paper("Unlocking Efficient Long-to-Short LLM Reasoning with Model Merging", arxiv="2503.20641", year=2025),
        "a reasoning model that thinks about half as long",
        "ties",
        (Place("quick"), Place("thinking")),
        "base",
        parameters={"density": 0.7, "scaling": 0.7, "inclusive_threshold": True},
        advice="at 7 to 8 billion parameters; smaller and larger models are harder",
    ),
    Preset(
        "reason-in-language",
        Paper("Adapting Language-Specific LLMs to a Reasoning Model in One Day", arxiv="2502.09056", year=2025),
        "a reasoning model that thinks and answers in a language (Thai, in the study)",
        "dare_linear",
        (
            Place("reasoner", {"weight": [0.8, 0.8, 0.6, 0.3], "density": 0.9}),
            Place("language", {"weight": [0.2, 0.2, 0.4, 0.7], "density": 0.9}),
        ),
        "base",
        parameters={"normalize": True},
        advice="early and middle layers lean to the reasoner, late ones to the language, as in the study; the numbers are "
        "ours. The study first tunes the language model on translated reasoning",
    ),
    Preset(
        "retrievers",
        Paper("Time-Specifier Model Merging (TSM)", url="https://github.com/seungyoonee/TSM"),
        "retrievers that were fine-tuned for one kind of question each",
        "linear",
        (Place("retriever", repeats=True),),
        advice="equal weights, as in the study",
    ),
    Preset(
        "safety-mix",
        Paper("Mix Data or Merge Models? Optimizing for Diverse Multi-Task Learning", arxiv="2410.10801", year=2024),
        "a fine-tune for general use and one for safety, of one base, in any languages",
        "slerp",
        (Place("safe"),),
        "general",
        parameters={"t": 0.5},
        advice="each on its own data; t is a start of ours, larger is safer. One misaligned model spoils any merge "
        "(arXiv 2406.14563): score the inputs too",
    ),
    Preset(
        "safety-restore",
        Paper("Safeguard Fine-Tuned LLMs Through Pre- and Post-Tuning Model Merging", arxiv="2412.19512", year=2024),
        "a fine-tune that is as safe as the aligned model that it was made of",
        "linear",
        (Place("aligned", {"weight": 0.5}), Place("tuned", {"weight": 0.5})),
        advice="the largest weight of the tuned model at which it is safe enough; the two sum to 1",
    ),
    Preset(
        "skill",
        Paper("Merge to Learn: Efficiently Adding Skills to Language Models", arxiv="2410.12937", year=2024),
        "a general model, and a skill that the same base was trained in apart",
        "task_arithmetic",
        (Place("general", {"weight": 1.0}), Place("skill", {"weight": 0.5})),
        "base",
        advice="without a validation set: the skill's weight is the size of its training data over that of the general data",
    ),
    Preset(
        "soup",
        Paper("Model soups", arxiv="2203.05482", year=2022),
        "fine-tunes of one model on one task with different hyper-parameters",
        "linear",
        (Place("model", repeats=True),),
        advice="leave out what scores far below the best; the greedy soup goes from the best model down and keeps each with "
        "which the mean scores higher on validation data",
    ),
    Preset(
        "unlearn",
        Paper("Editing Models with Task Arithmetic", arxiv="2212.04089", year=2022),
        "a model that has forgotten what one fine-tune has learned",
        "task_arithmetic",
        (Place("learned", {"weight": -1.0}),),
        "base",
        parameters={"scaling": 0.5},
        advice="the largest scaling at which other tasks keep 95 % of their scores; forget takes several fine-tunes",
    ),
    Preset(
        "wise-ft",
        Paper("Robust fine-tuning of zero-shot models (WiSE-FT)", arxiv="2109.01903", year=2021),
        "a fine-tune that stays good at what the zero-shot model could",
        "linear",
        (Place("zeroshot", {"weight": 0.25}), Place("tuned", {"weight": 0.75})),
        advice="0.75 is that of the authors' example; 0.5 where nothing can be measured",
    ),
)
PRESETS: Mapping[str, Preset] = {one.name: one for one in _ALL}
"""Every preset by name."""


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        RecipeError: there is none; the nearest name is suggested.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}", right=nearest(name, PRESETS))
    return PRESETS[name]


def preset(name: str, /, **models: Any) -> Recipe:
    """Return the recipe of a preset with these models, such as `preset("soup", model=["a", "b"])`.

    Raises:
        RecipeError: there is no such preset or role, or a role has no model, or too many.
    """
    found = find_preset(name)
    given = {
        role: [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
        for role, value in models.items()
    }
    return parse_recipe(recipe_text(found, given))
