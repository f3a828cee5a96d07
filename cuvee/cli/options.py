"""The options that several commands share. Growing this list takes a decision: a test holds it."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Group, Parameter, validators

__all__ = [
    "AllowNan",
    "AsJson",
    "BatchSize",
    "Compat",
    "Device",
    "Exclude",
    "GateDtype",
    "Memory",
    "Offline",
    "OlderThan",
    "Only",
    "Overwrite",
    "Png",
    "Quiet",
    "Remove",
    "Sample",
    "Seed",
    "ShardSize",
    "SkipRouting",
    "Stages",
    "Tensors",
    "Threads",
    "Token",
]

_RECIPE = Group("The recipe", sort_key=1)
_TENSORS = Group("The tensors", sort_key=1)
_GATES = Group("The gates", sort_key=1)
_OUTPUT = Group("The output", sort_key=2)
_MACHINE = Group("The machine", sort_key=3)
_HUB = Group("The Hugging Face hub", sort_key=4)
_TERMINAL = Group("The terminal", sort_key=5)

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
Tensors = Annotated[bool, Parameter(group=_TENSORS, help="List every tensor: name, dtype, shape, layer, role.")]
Quiet = Annotated[bool, Parameter(group=_TERMINAL, help="Print nothing but warnings and errors.")]
AsJson = Annotated[bool, Parameter(name="--json", group=_TERMINAL, help="Print one JSON object on stdout, errors too.")]
