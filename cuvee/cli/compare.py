"""`cuvee compare`: how experts differ from their base, and from each other."""

from __future__ import annotations

import json as json_text
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cuvee.cli import app
from cuvee.cli.amounts import in_cosine, in_number, in_share, in_short
from cuvee.cli.heat_map import draw, save_png
from cuvee.cli.merge import print_left_out, print_warnings
from cuvee.cli.options import AsJson, Exclude, Offline, Only, Png, Threads, Token
from cuvee.cli.planning import said_meanwhile
from cuvee.cli.progress import Bar
from cuvee.cli.screen import heading, indented, print_json, prose, safe, screen, show, styled, table
from cuvee.errors import CuveeError, Problems

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.engine.comparing import Comparison, Contrast

__all__ = ["compare"]

_MOST_ROWS = 32


def compare(
    base: str,
    /,
    *experts: str,
    only: Only = None,
    exclude: Exclude = None,
    png: Png = None,
    threads: Threads = None,
    offline: Offline = False,
    token: Token = None,
    json: AsJson = False,
) -> None:
    """Show how fine-tuned models differ from their base, and from each other.

    Reads every weight once. Says of the whole model, of each role and of each layer how long the task vectors (expert
    − base) are beside the base, their cosines, how often their signs agree, and in which share of elements they
    interfere.

    Args:
        base: the model that the others were fine-tuned from: a folder, a file, a hub id.
        experts: one or more fine-tuned models.
    """
    clock = app.clock
    if not experts:
        from cuvee.cli.usage import UsageError

        raise UsageError("EXPERT is missing", where="cuvee compare", right=f"cuvee compare {base} EXPERT…")
    with clock.phase("import"), said_meanwhile("loading torch"):
        import torch  # noqa: F401

        import cuvee.engine.comparing as comparing
        from cuvee.checkpoints.opening import open_model
    with said_meanwhile("opening"):
        base_model, *others = (open_model(one, offline=offline, token=token) for one in (base, *experts))
    with clock.phase("compare"), _as_options(), Bar() as bar:
        found = comparing.compare(
            base_model,
            others,
            exclude=exclude or (),
            only=only,
            threads=threads,
            progress=lambda done, total: bar.show(done, total, "comparing"),
        )
    if png is not None:
        from cuvee.reports.expert_maps import expert_maps

        save_png(expert_maps(found), png, title=f"{', '.join(found.experts)} against {found.base}")
    if json:
        print_json(_as_object(found) | {"png": png, "seconds": {**clock.phases, "total": clock.total}})
    else:
        _print_comparison(screen(), found)
        if png is not None:
            show(screen(), "", styled(f"{png} has the heat maps", "bold green"))


@contextmanager
def _as_options() -> Iterator[None]:
    """Say `exclude: ["a"]`, which belongs into a recipe, as something to type here."""
    try:
        yield
    except CuveeError as error:
        for one in error.errors if isinstance(error, Problems) else (error,):
            one.right = re.sub(r'exclude: (\["[^\]]*"\])', _exclude_option, one.right)
        raise


def _exclude_option(match: re.Match[str]) -> str:
    try:
        names = json_text.loads(match[1])
    except ValueError:
        return match[0]
    return " ".join(f"--exclude {shlex.quote(str(name))}" for name in names)


def _print_comparison(console: Console, found: Comparison) -> None:
    total = found.total()
    count = len(found.experts)
    show(console, heading(f"Task vectors from {safe(found.base)}"))
    made = table(
        "", "expert", "‖τ‖", "‖τ‖/‖θ₀‖", "changed", *_cosine_titles(count), numbers=(0, *range(2, 5 + count)), fold=(1,)
    )
    for k, label in enumerate(found.experts):
        cosines = [in_cosine(float(c)) if j != k else "1" for j, c in enumerate(total.cosines[k])] if count > 1 else []
        numbers = (in_short(total.norms[k]), in_short(total.ratios[k]), in_share(total.changed_shares[k]), *cosines)
        made.add_row(styled(k + 1, "dim"), styled(label, "cyan"), *map(styled, numbers))
    show(console, indented(made))
    if count > 1:
        show(console, "", *map(prose, _in_words(total, count)))
    show(console, "", heading("By role"), indented(_contrast_table("role", _by_role(found))))
    layers = _by_layer(found)
    if layers:
        show(console, "", heading("By layer"), indented(_contrast_table("layer", layers)))
    from cuvee.reports.expert_maps import expert_maps

    for one in expert_maps(found):
        lines = draw(one, width=console.width - 2, coloured=_has_colours(console))
        show(console, "", *map(indented, lines))
    left_out = {name: reason.rpartition("; from ")[0] for name, reason in found.left_out.items()}
    print_left_out(console, left_out, title="Not compared")
    print_warnings(console, found.warnings)


def _has_colours(console: Console) -> bool:
    """True where shades of colour can be told apart."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def _cosine_titles(count: int) -> list[str]:
    return [f"cos {k + 1}" for k in range(count)] if count > 1 else []


def _in_words(total: Contrast, count: int) -> list[str]:
    return [
        f"agree: in {in_share(total.mean_agreement)} of the elements that both experts of a pair have changed, their "
        "signs are equal (chance: 50 %).",
        f"interference: in {in_share(total.interference)} of all elements, at least two experts pull in opposite "
        f"directions (chance, where all change everything: {in_share(1 - 2.0 ** (1 - count))}).",
    ]


Group = tuple[str, "Contrast"]


def _by_role(found: Comparison) -> list[Group]:
    sums = found.by(lambda place: place.role)
    return [(role, sums[role]) for role in found.roles]


def _by_layer(found: Comparison) -> list[Group]:
    """Return the layers of every stack, neighbours together where there are many, and what is in none."""
    stacks = found.stacks
    steps = {stack: math.ceil(length / _MOST_ROWS) for stack, length in stacks.items()}
    sums = found.by(lambda p: None if p.layer is None else (p.stack, p.layer // steps[p.stack]))
    groups: list[Group] = []
    for place in sorted(place for place in sums if place is not None):
        stack, number = place
        first, last = number * steps[stack], min((number + 1) * steps[stack], stacks[stack]) - 1
        layers = f"{first}" if first == last else f"{first}–{last}"
        groups.append((layers if len(stacks) == 1 else f"{stack} {layers}", sums[place]))
    if groups and None in sums:
        groups.append(("outside", sums[None]))
    return groups


def _contrast_table(title: str, groups: Sequence[Group]) -> Any:
    several = len(groups[0][1].changed) > 1 if groups else False
    titles = ("params", "‖τ‖/‖θ₀‖", "changed", *(("cosine", "agree", "interference") if several else ()))
    made = table(title, *titles, numbers=range(1, 1 + len(titles)), fold=(0,))
    for label, one in groups:
        changed = sum(one.changed_shares) / len(one.changed_shares)
        pairs = (
            (in_cosine(one.mean_cosine), in_share(one.mean_agreement), in_share(one.interference)) if several else ()
        )
        numbers = (in_number(one.parameters), in_short(one.mean_ratio), in_share(changed), *pairs)
        made.add_row(styled(label), *map(styled, numbers))
    return made


def _as_object(found: Comparison) -> dict[str, Any]:
    layers = found.by(lambda place: (place.stack, place.layer))
    cells = found.by(lambda place: (place.stack, place.layer, place.role))
    return {
        "base": found.base,
        "experts": found.experts,
        "total": _numbers(found.total()),
        "roles": {role: _numbers(one) for role, one in _by_role(found)},
        "layers": [{"stack": s, "layer": j, **_numbers(one)} for (s, j), one in layers.items() if j is not None],
        "cells": [{"stack": s, "layer": j, "role": role, **_numbers(one)} for (s, j, role), one in cells.items()],
        "left_out": found.left_out,
        "warnings": found.warnings,
    }


def _numbers(one: Contrast) -> dict[str, Any]:
    return {
        "parameters": one.parameters,
        "base_norm": one.base_norm,
        "norms": one.norms,
        "ratios": one.ratios,
        "changed": one.changed_shares,
        "cosines": one.cosines.tolist(),
        "sign_agreement": one.agreement.tolist(),
        "interference": one.interference,
        "contested": one.contested / one.parameters if one.parameters else None,
    }
