"""The options that several commands share. Growing this list takes a decision: a test holds it."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Group, Parameter, validators

__all__ = [
    "Add",
    "AllowNan",
    "AnchorCount",
    "AnchorLoss",
    "AnchorPart",
    "AnchorStart",
    "AnchorSteps",
    "AnchorTokens",
    "AsJson",
    "Atoms",
    "BatchSize",
    "BenchMethods",
    "ByteMatch",
    "ChatTemplate",
    "Clusters",
    "Compat",
    "Continue",
    "CosineSimilarity",
    "Device",
    "Draws",
    "Epochs",
    "EvaluationBatch",
    "EvaluationTasks",
    "Exclude",
    "FewShot",
    "GateDtype",
    "IncludePath",
    "LearningRate",
    "Limit",
    "Load",
    "Magikarp",
    "MaxTokens",
    "Memory",
    "MergedModel",
    "Modules",
    "Offline",
    "OlderThan",
    "Only",
    "OtherBase",
    "OtherExperts",
    "OutFolder",
    "OutModel",
    "Overwrite",
    "Png",
    "PrefixMatch",
    "PresetName",
    "Quick",
    "Quiet",
    "Remove",
    "Sample",
    "Seed",
    "Seeds",
    "Severities",
    "ShardSize",
    "SkipRouting",
    "Stages",
    "SubwordMethod",
    "Tensors",
    "Threads",
    "Token",
    "TokenBatch",
    "TokenNoise",
    "TokenScale",
    "UnsafeCode",
    "Way",
    "WeightScheme",
]

_RECIPE = Group("The recipe", sort_key=1)
_TENSORS = Group("The tensors", sort_key=1)
_GATES = Group("The gates", sort_key=1)
_TASKS = Group("The tasks", sort_key=1)
_OUTPUT = Group("The output", sort_key=2)
_MACHINE = Group("The machine", sort_key=3)
_TOKENS = Group("The new tokens", sort_key=1)
_TEXTS = Group("The texts", sort_key=1)
_ANCHORS = Group("The anchors", sort_key=1)
_HUB = Group("The Hugging Face hub", sort_key=4)
_TERMINAL = Group("The terminal", sort_key=5)

PresetName = Annotated[
    str | None,
    Parameter(
        name="--preset",
        group=_RECIPE,
        metavar="NAME",
        help="The recipe of a study, with ROLE=MODEL for each of its places instead of RECIPE; cuvee presets lists them.",
    ),
]
Continue = Annotated[
    str | None,
    Parameter(
        name="--continue",
        group=_RECIPE,
        metavar="OUT",
        help="Instead of RECIPE and OUT: a model merged by a method that can be continued (opcm), replaced when the new one "
        "is complete. The experts in it are needed no more.",
    ),
]
Add = Annotated[
    tuple[str, ...],
    Parameter(
        name="--add", group=_RECIPE, metavar="EXPERT", help="With --continue: an expert to merge; may be repeated."
    ),
]
Seed = Annotated[
    int | None, Parameter(group=_RECIPE, metavar="N", help="Seed of random draws, instead of the recipe's.")
]
Compat = Annotated[
    Literal["mergekit"] | None,
    Parameter(group=_RECIPE, help="Bring back the defects of mergekit's algorithms, for equal results."),
]
Overwrite = Annotated[
    bool, Parameter(group=_OUTPUT, help="Replace a folder that is there, once the new model is complete.")
]
ShardSize = Annotated[
    str, Parameter(group=_OUTPUT, metavar="SIZE", help="The most bytes of tensors in one file; 5GB if not given.")
]
Stages = Annotated[
    str | None,
    Parameter(
        group=_OUTPUT, metavar="FOLDER", help="Publish every stage of the recipe here too, and take those already made."
    ),
]
AllowNan = Annotated[bool, Parameter(group=_OUTPUT, help="Let NaN and Inf through; they are counted and named.")]
Png = Annotated[
    str | None, Parameter(group=_OUTPUT, metavar="FILE", help="Draw the heat maps into this file too (matplotlib).")
]
Device = Annotated[Literal["cpu", "cuda"], Parameter(group=_MACHINE, help="Where to compute; cpu if not given.")]
Threads = Annotated[
    int | None,
    Parameter(
        group=_MACHINE,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Worker threads; one for each core if not given. The result is the same.",
    ),
]
Memory = Annotated[
    str | None,
    Parameter(
        group=_MACHINE, metavar="SIZE", help="The most memory to use, such as 2GB; a merge that needs more is refused."
    ),
]
Load = Annotated[
    bool, Parameter(group=_TENSORS, help="Also see whether transformers finds all tensors that config.json promises.")
]
Sample = Annotated[
    str | None,
    Parameter(
        group=_MACHINE, metavar="SHARE", help="Read only this share of the weights, such as 5%; others each time."
    ),
]
Remove = Annotated[bool, Parameter(group=_OUTPUT, help="Do remove them, instead of saying what would be.")]
OlderThan = Annotated[
    str,
    Parameter(
        group=_OUTPUT,
        metavar="TIME",
        help="Leave alone what has changed since, such as 90s, 30m, 12h, 2d; 1d if not given.",
    ),
]
Offline = Annotated[bool, Parameter(group=_HUB, help="Never ask the hub; use what was fetched before.")]
Token = Annotated[str | None, Parameter(group=_HUB, metavar="TOKEN", help="For private models; HF_TOKEN if not given.")]
DecompositionsFolder = Annotated[
    str | None,
    Parameter(
        name="--decompositions",
        group=_MACHINE,
        metavar="FOLDER",
        help="Keep the decompositions of matrices here: a merge with other coefficients then costs only products.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    Parameter(group=_TENSORS, metavar="PATTERN", help="Leave out the tensors whose names match, such as 'lm_head*'."),
]
Only = Annotated[
    list[str] | None, Parameter(group=_TENSORS, metavar="PATTERN", help="Look only at the tensors whose names match.")
]
GateDtype = Annotated[
    Literal["float32", "bfloat16"],
    Parameter(group=_GATES, help="Of the forward pass that makes gates; float32 if not given."),
]
BatchSize = Annotated[
    int,
    Parameter(
        name="--batch",
        group=_GATES,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Prompts at a time in the forward pass; 32 if not given.",
    ),
]
SkipRouting = Annotated[
    bool, Parameter(group=_GATES, help="Do not measure, after building, which experts the prompts reach.")
]
Way = Annotated[
    Literal["omp", "common_interpolation", "subword", "mean", "zero", "randn", "john_hewitt", "landmark_pca"],
    Parameter(
        name="--approximation-method",
        group=_TOKENS,
        metavar="WAY",
        help="How a token that the model lacks gets a row: omp (if not given), common_interpolation, subword, mean, zero, "
        "randn, john_hewitt or landmark_pca.",
    ),
]
Atoms = Annotated[
    int,
    Parameter(
        name="--k",
        group=_TOKENS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Shared tokens that a new one is made of (omp, common_interpolation); 64 if not given.",
    ),
]
WeightScheme = Annotated[
    Literal["distance_proportional", "barycentric", "least_squares"],
    Parameter(
        group=_TOKENS,
        metavar="SCHEME",
        help="Of common_interpolation: distance_proportional (if not given), barycentric or least_squares.",
    ),
]
CosineSimilarity = Annotated[
    bool, Parameter(group=_TOKENS, help="Let common_interpolation look for the nearest tokens by cosine.")
]
SubwordMethod = Annotated[
    Literal["mean", "sum", "weighted_mean", "first_last"],
    Parameter(
        group=_TOKENS,
        metavar="HOW",
        help="How subword makes one row of those of a token's pieces: mean (if not given), sum, weighted_mean or first_last.",
    ),
]
PrefixMatch = Annotated[
    Literal["no", "yes", "embed_only", "lm_head_only"],
    Parameter(
        group=_TOKENS,
        metavar="WHERE",
        help="Give a token the row of its longest beginning that the model knows: no, yes, embed_only or lm_head_only.",
    ),
]
ByteMatch = Annotated[
    Literal["no", "yes", "embed_only", "lm_head_only"],
    Parameter(
        group=_TOKENS,
        metavar="WHERE",
        help="Take <0x41> of one tokenizer for the A of another: no, yes, embed_only or lm_head_only.",
    ),
]
Magikarp = Annotated[
    bool, Parameter(group=_TOKENS, help="Set rows of hardly trained tokens to zero, and make no new token of them.")
]
TokenNoise = Annotated[
    float, Parameter(name="--new-vocab-noise", group=_TOKENS, metavar="X", help="Add normal draws of this size.")
]
TokenScale = Annotated[
    float, Parameter(name="--new-vocab-scale", group=_TOKENS, metavar="X", help="Multiply new rows by this.")
]
TokenBatch = Annotated[
    int,
    Parameter(
        name="--batch-size",
        group=_TOKENS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="New tokens worked on at a time; 512 if not given.",
    ),
]
MaxTokens = Annotated[
    int,
    Parameter(
        group=_TEXTS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Of each text, from its beginning; 512 if not given, and no more than the model takes.",
    ),
]
Clusters = Annotated[
    int,
    Parameter(
        group=_TEXTS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="How many clusters of texts; 20 if not given.",
    ),
]
Draws = Annotated[
    int,
    Parameter(
        group=_TEXTS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Predictions of a language model that are drawn for each text; 1 if not given.",
    ),
]
Modules = Annotated[
    list[str] | None,
    Parameter(
        name="--only", group=_TENSORS, metavar="PATTERN", help="Only those whose names match, such as '*.mlp.*'."
    ),
]
OutModel = Annotated[str, Parameter(name="--out", group=_OUTPUT, metavar="FOLDER", help="Folder to publish.")]
MergedModel = Annotated[
    str | None,
    Parameter(
        name="--from",
        group=_ANCHORS,
        metavar="MODEL",
        help="Begin from a merge of the experts, each element of whose task vector gets a coefficient; the base if not given.",
    ),
]
AnchorPart = Annotated[
    Literal["layer", "mlp"],
    Parameter(
        group=_ANCHORS, help="What is trained: whole layers (if not given), or their MLPs, as the paper does in LLMs."
    ),
]
AnchorCount = Annotated[
    int,
    Parameter(
        name="--anchors",
        group=_ANCHORS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Of each expert at each layer; 64 if not given. The paper: 64, for MLPs of LLMs 8192.",
    ),
]
AnchorTokens = Annotated[
    int,
    Parameter(
        group=_ANCHORS,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Of each anchor; 16 if not given. The paper: 5 to 257, for MLPs 1.",
    ),
]
AnchorSteps = Annotated[
    int,
    Parameter(
        group=_ANCHORS,
        metavar="N",
        validator=validators.Number(gte=0),
        help="By which anchors are learned; 1200 if not given. The paper: 1200, for MLPs 200.",
    ),
]
AnchorStart = Annotated[
    Literal["weights", "gauss"],
    Parameter(
        group=_ANCHORS, help="Where anchors begin: rows of the expert's weights (if not given), or small normal draws."
    ),
]
Epochs = Annotated[
    int,
    Parameter(
        group=_ANCHORS,
        metavar="N",
        validator=validators.Number(gte=0),
        help="Of training on the anchors; 100 if not given. The paper: 25 to 125.",
    ),
]
LearningRate = Annotated[
    float | None,
    Parameter(
        group=_ANCHORS,
        metavar="X",
        validator=validators.Number(gt=0),
        help="Of that training; if not given 1e-5, and 1e-2 with --from.",
    ),
]
AnchorLoss = Annotated[
    Literal["cosine", "mse"], Parameter(group=_ANCHORS, help="What the training lowers; cosine if not given.")
]
Tensors = Annotated[bool, Parameter(group=_TENSORS, help="List every tensor: name, dtype, shape, layer, role.")]
Quick = Annotated[bool, Parameter(group=_MACHINE, help="Small models and few steps: a minute or two on two cores.")]
Seeds = Annotated[
    int,
    Parameter(
        group=_MACHINE,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Train so many times, each from another seed; 1 if not given.",
    ),
]
BenchMethods = Annotated[
    list[str] | None,
    Parameter(
        name="--methods",
        group=_RECIPE,
        metavar="METHOD",
        consume_multiple=1,
        help="Only these, each with settings if wanted, such as ties:density=0.2; all: every registered one, as if not given.",
    ),
]
EvaluationTasks = Annotated[
    list[str],
    Parameter(
        name="--tasks",
        group=_TASKS,
        metavar="TASK",
        consume_multiple=1,
        help="A suite, such as lm, one of its tasks, such as lm/python, or a task of lm-evaluation-harness, such as arc_easy; "
        "several may follow each other, or be joined by commas.",
    ),
]
FewShot = Annotated[
    int | None,
    Parameter(
        name="--num-fewshot",
        group=_TASKS,
        metavar="N",
        validator=validators.Number(gte=0),
        help="Solved examples before each item of the harness; the task's own number if not given.",
    ),
]
IncludePath = Annotated[
    str | None,
    Parameter(
        group=_TASKS,
        metavar="FOLDER",
        help="Tasks of your own, as the harness's YAML files; functions that they name are run.",
    ),
]
OtherBase = Annotated[
    str | None,
    Parameter(
        name="--base", group=_TASKS, metavar="MODEL", help="On the harness's tasks, score this base beside the model."
    ),
]
OtherExperts = Annotated[
    tuple[str, ...],
    Parameter(
        name="--expert",
        group=_TASKS,
        metavar="MODEL",
        help="And this expert; may be repeated. A task's own expert is the one that is best at it.",
    ),
]
ChatTemplate = Annotated[
    bool,
    Parameter(
        name="--apply-chat-template", group=_TASKS, help="Ask the harness's items as a chat, by the model's template."
    ),
]
UnsafeCode = Annotated[
    bool,
    Parameter(
        name="--confirm-run-unsafe-code",
        group=_TASKS,
        help="Let tasks of the harness run code that the model writes, such as humaneval.",
    ),
]
EvaluationBatch = Annotated[
    int,
    Parameter(
        name="--batch-size",
        group=_MACHINE,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Sequences of the harness at a time; 4 if not given, halved where a GPU's memory runs out.",
    ),
]
Limit = Annotated[
    int | None,
    Parameter(
        group=_MACHINE,
        metavar="N",
        validator=validators.Number(gte=1),
        help="Score on the first N items of each task, the same for all; on all of them if not given.",
    ),
]
Severities = Annotated[
    list[Literal[1, 2, 3, 4, 5]] | None,
    Parameter(
        name="--severity",
        group=_MACHINE,
        metavar="N",
        consume_multiple=1,
        help="How far data are shifted, 1 (slightly) to 5; several may follow each other; 3 if not given.",
    ),
]
OutFolder = Annotated[
    str | None,
    Parameter(
        name="--out",
        group=_OUTPUT,
        metavar="FOLDER",
        help="Where the files go; bench-SUITE in this folder if not given.",
    ),
]
Quiet = Annotated[bool, Parameter(group=_TERMINAL, help="Print nothing but warnings and errors.")]
AsJson = Annotated[bool, Parameter(name="--json", group=_TERMINAL, help="Print one JSON object on stdout, errors too.")]
