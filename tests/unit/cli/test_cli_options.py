"""The command line, frozen: growing it takes a decision, made by changing this file."""

from __future__ import annotations

from cuvee.cli.app import COMMANDS, GROUPS, build

PLANNING = ["--seed", "--compat", "--shard-size", "--device", "--threads", "--memory", "--offline", "--token"]
FROZEN = {
    "merge": ["RECIPE", "OUT", "--preset", "--continue", "--add", "--overwrite", "--allow-nan", "--stages", "--decompositions",
        "--quiet", "--json", *PLANNING,
    ],
    "moe": [
        "CONFIG", "OUT", "--gate-dtype", "--batch", "--skip-routing", "--overwrite", "--allow-nan", "--quiet", "--json",
        *PLANNING,
    ],
    "mergekit-yaml": [],
    "tokens": [
        "MODEL", "DONOR", "OUT", "--approximation-method", "--k", "--weight-scheme", "--cosine-similarity",
        "--subword-method", "--prefix-match", "--byte-match", "--magikarp", "--new-vocab-noise", "--new-vocab-scale",
        "--batch-size", "--seed", "--overwrite", "--allow-nan", "--shard-size", "--device", "--threads", "--memory",
        "--offline", "--token", "--quiet", "--json",
    ],
    "fill": [
        "BASE", "PART", "OUT", "--overwrite", "--allow-nan", "--shard-size", "--threads", "--memory", "--offline",
        "--token", "--quiet", "--json",
    ],
    "fda": [
        "BASE", "EXPERTS", "--out", "--from", "--part", "--anchors", "--anchor-tokens", "--steps", "--start", "--epochs",
        "--learning-rate", "--loss", "--seed", "--overwrite", "--allow-nan", "--shard-size", "--device", "--threads",
        "--offline", "--token", "--quiet", "--json",
    ],
    "plan": ["RECIPE", "--preset", "--json", *PLANNING],
    "methods": ["NAME", "--json"],
    "collect hidden": [
        "MODEL", "TEXTS", "OUT", "--max-tokens", "--device", "--overwrite", "--offline", "--token", "--quiet", "--json",
    ],
    "collect gram": [
        "MODEL", "TEXTS", "OUT", "--only", "--max-tokens", "--device", "--overwrite", "--offline", "--token", "--quiet",
        "--json",
    ],
    "collect outgram": [
        "MODEL", "TEXTS", "OUT", "--only", "--draws", "--max-tokens", "--device", "--overwrite", "--offline", "--token",
        "--quiet", "--json",
    ],
    "collect fisher": [
        "MODEL", "TEXTS", "OUT", "--only", "--draws", "--max-tokens", "--device", "--overwrite", "--offline", "--token",
        "--quiet", "--json",
    ],
    "collect typical": [
        "MODEL", "TEXTS", "OUT", "--count", "--max-tokens", "--device", "--overwrite", "--offline", "--token", "--quiet",
        "--json",
    ],
    "presets": ["NAME", "MODELS", "--json"],
    "inspect": ["MODEL", "--tensors", "--offline", "--token", "--json"],
    "compare": [
        "BASE", "EXPERTS", "--only", "--exclude", "--png", "--threads", "--offline", "--token", "--json",
    ],
    "bench build": ["SUITE", "--quick", "--seeds", "--device", "--quiet", "--json"],
    "bench run": [
        "SUITE", "--methods", "--quick", "--seeds", "--limit", "--severity", "--out", "--device", "--quiet", "--json",
    ],
    "evaluate": [
        "MODEL", "--tasks", "--quick", "--limit", "--num-fewshot", "--include-path", "--base", "--expert",
        "--apply-chat-template", "--confirm-run-unsafe-code", "--batch-size", "--device", "--offline", "--token", "--json",
    ],
    "verify": ["FOLDER", "--sample", "--load", "--threads", "--json"],
    "gc": ["FOLDER", "--remove", "--older-than", "--json"],
}  # fmt: skip


SUMMARIES = {name: summary for name, summary in COMMANDS.items() if name not in GROUPS}
SUMMARIES |= {f"{group} {name}": summary for group, names in GROUPS.items() for name, summary in names.items()}


def command(name, called=""):
    app = build(called)
    for part in name.split():
        app = app[part]
    return app


def test_commands_and_options_are_those_that_were_decided():
    found = {}
    for name in SUMMARIES:
        arguments = command(name).assemble_argument_collection()
        found[name] = [argument.names[0] for argument in arguments if argument.show and argument.parse]
    assert found == FROZEN


def test_a_commands_help_begins_with_what_the_list_says_of_it():
    for name, summary in SUMMARIES.items():
        document = command(name, name.split()[-1]).default_command.__doc__
        first = " ".join(document.split("\n\n")[0].split())
        assert first == summary or first.startswith(summary.rstrip("."))


def test_every_option_says_what_it_is_for():
    for name in SUMMARIES:
        for argument in command(name, name.split()[-1]).assemble_argument_collection():
            if argument.show and argument.parse and argument.names[0].startswith("--"):
                assert argument.parameter.help, f"{name} {argument.names[0]}"
