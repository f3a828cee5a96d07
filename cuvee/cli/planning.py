"""From a recipe's file and the options of the command line to a plan."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cuvee.checkpoints.writing import parse_size
from cuvee.cli.clock import Clock
from cuvee.cli.options import Compat, Device, Memory, Offline, Seed, ShardSize, Threads, Token
from cuvee.cli.screen import screen
from cuvee.cli.usage import UsageError
from cuvee.tensors.devices import need_device

if TYPE_CHECKING:
    from cuvee.engine.plan import MergePlan
    from cuvee.recipes import Recipe

__all__ = ["PlanOptions", "load_engine", "make_plan", "noted", "read_recipe", "read_words", "said_meanwhile"]


@Parameter(name="*")
@dataclass(frozen=True)
class PlanOptions:
    """The options of every command that plans a merge.

    Raises:
        RecipeError: a size is none.
    """

    seed: Seed = None
    compat: Compat = None
    shard_size: ShardSize = "5GB"
    device: Device = "cpu"
    threads: Threads = None
    memory: Memory = None
    offline: Offline = False
    token: Token = None

    def __post_init__(self) -> None:
        _ = self.shard_bytes, self.memory_bytes

    @property
    def shard_bytes(self) -> int:
        """`--shard-size` in bytes."""
        return parse_size(self.shard_size, where="--shard-size")

    @property
    def memory_bytes(self) -> int | None:
        """`--memory` in bytes."""
        return None if self.memory is None else parse_size(self.memory, where="--memory")

    @property
    def of_plan(self) -> dict[str, Any]:
        """Those that `cuvee.plan` takes."""
        return {
            "memory": self.memory_bytes,
            "threads": self.threads,
            "shard_size": self.shard_bytes,
            "device": self.device,
            "offline": self.offline,
            "token": self.token,
        }


def read_recipe(path: str, options: PlanOptions) -> Recipe:
    """Read a recipe and what the command line changes of it, which is noted at the end of its text.

    Raises:
        CuveeError: all that is wrong with it, said together.
    """
    from cuvee.recipes import load_recipe

    return _changed(load_recipe(path), options)


def read_words(command: str, words: Sequence[str], preset: str | None, options: PlanOptions) -> Recipe:
    """Read a recipe as `read_recipe` does, from the words of a command line.

    Args:
        command: for errors.
        words: the path of the recipe's file; with a preset `ROLE=MODEL` of each of its places.
        preset: its name.

    Raises:
        CuveeError: all that is wrong with it, said together.
    """
    if preset is None:
        if len(words) > 1:
            raise UsageError(f"one argument too many: {words[-1]!r}", where=command, right=f"see {command} --help")
        return read_recipe(words[0], options)
    from cuvee.recipes import parse_recipe
    from cuvee.recipes.preset_form import given_models, recipe_text
    from cuvee.recipes.presets import find_preset

    found = find_preset(preset)
    text = recipe_text(found, given_models(found, words))
    return _changed(parse_recipe(text, name=f"--preset {preset}"), options)


def _changed(recipe: Recipe, options: PlanOptions) -> Recipe:
    from cuvee.recipes import everywhere, prepare

    if options.seed is not None:
        recipe = everywhere(recipe, seed=options.seed, text=noted(recipe.text, f"--seed {options.seed}"))
    if options.compat is not None:
        recipe = everywhere(recipe, compat=options.compat, text=noted(recipe.text, f"--compat {options.compat}"))
    prepare(recipe)  # what is wrong is said before torch is waited for
    return recipe


def noted(text: str, option: str) -> str:
    """Return a recipe's text with what the command line changes of it."""
    return f"{text.rstrip()}\n# on the command line: {option}\n"


def load_engine(device: str, clock: Clock, recipe: Recipe | None = None, *, quiet: bool = False) -> None:
    """Import the engine, and torch unless the recipe does not need it.

    Raises:
        ResourceError: torch has no such device.
    """
    with clock.phase("import"), said_meanwhile("loading", wanted=not quiet), _without_collection():
        import cuvee.engine.run  # noqa: F401
        from cuvee.engine.plan import runs_on_arrays

        if recipe is not None and runs_on_arrays(recipe, device):
            return
        import torch  # noqa: F401

        need_device(device)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Import without the garbage collector, which finds nothing in new modules and takes 0.1 s over torch."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_plan(
    recipe: Recipe, options: PlanOptions, clock: Clock, *, decompositions: str | None = None, quiet: bool = False
) -> MergePlan:
    """Plan a merge.

    Raises:
        CuveeError: all that is wrong with the models, said together.
    """
    from cuvee.engine.plan import plan

    with clock.phase("plan"), said_meanwhile("planning", wanted=not quiet):
        return plan(
            recipe,
            **options.of_plan,
            decompositions=decompositions,
        )


@contextmanager
def said_meanwhile(what: str, *, wanted: bool = True) -> Iterator[None]:
    """Say what is being waited for, in a terminal, until it is there."""
    if not (wanted and sys.stderr.isatty()):
        yield
        return
    with screen(stderr=True).status(what, spinner="dots"):
        yield
