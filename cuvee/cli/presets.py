"""`cuvee presets`: recipes of studies, and one of them with models in its places."""

from __future__ import annotations

from cuvee.cli.options import AsJson
from cuvee.cli.screen import heading, indented, print_json, prose, screen, show, styled, table
from cuvee.recipes.preset_form import Preset, example_text, given_models, recipe_text
from cuvee.recipes.presets import PRESETS, find_preset

__all__ = ["presets"]


def presets(name: str | None = None, /, *models: str, json: AsJson = False) -> None:
    """List recipes that studies have found good, or print one with models in its places.

    cuvee presets safety-restore aligned=chat tuned=mine > recipe.yml
    cuvee merge --preset safety-restore aligned=chat tuned=mine out/

    Args:
        name: a preset; without models its page is shown.
        models: the model of each place, as ROLE=MODEL; of a place for several, each.
    """
    if name is None:
        if json:
            print_json({"presets": [_described(one) for one in PRESETS.values()]})
        else:
            _print_list()
        return
    found = find_preset(name)
    if models:
        text = recipe_text(found, given_models(found, models))
        print_json({"preset": name, "recipe": text}) if json else print(text, end="")
    elif json:
        print_json(_described(found))
    else:
        _print_page(found)


def _command(preset: Preset) -> str:
    return f"cuvee merge --preset {preset.name} {preset.places} OUT\ncuvee presets {preset.name} {preset.places} > recipe.yml"


def _described(preset: Preset) -> dict[str, object]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "paper": vars(preset.paper),
        "method": preset.method,
        "roles": [{"role": role, "repeats": repeats} for role, repeats in preset.roles.items()],
        "advice": preset.advice,
        "recipe": example_text(preset),
    }


def _print_list() -> None:
    made = table("preset", "for")
    for one in PRESETS.values():
        made.add_row(styled(one.name, "bold cyan"), styled(one.summary))
    show(screen(), heading(f"{len(PRESETS)} presets"), "", indented(made), "")
    show(
        screen(),
        styled(
            "cuvee presets NAME: its study, its places, and the recipe; cuvee merge --preset NAME … carries it out",
            "dim",
        ),
    )


def _print_page(preset: Preset) -> None:
    console = screen()
    show(console, heading(preset.name), prose(preset.summary), indented(styled(str(preset.paper), "dim")), "")
    if preset.advice:
        show(console, heading("Advice"), prose(preset.advice), "")
    show(console, heading("The recipe"), prose(example_text(preset).rstrip()), "")
    show(console, heading("With your models"), prose(_command(preset)))
