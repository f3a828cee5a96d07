"""`cuvee`: the commands, and what becomes of a command that fails or is stopped."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cuvee._version import __version__
from cuvee.cli.clock import Clock, process_age
from cuvee.cli.stopping import Stopped, stoppable

if TYPE_CHECKING:
    from cyclopts import App

__all__ = ["COMMANDS", "GROUPS", "build", "main"]

COMMANDS = {
    "merge": "Merge models as a recipe says, and publish the result.",
    "mergekit-yaml": "Run a command line of mergekit-yaml.",
    "moe": "Make a mixture of experts of dense models, and publish it.",
    "tokens": "Give a model another model's tokenizer, and publish it.",
    "fill": "Put a model in its place in a larger one, and publish it.",
    "fda": "Merge by functional dual anchors: train each layer to answer learned inputs as every fine-tune does.",
    "plan": "Say what a merge will read, write, need and compute, before it does.",
    "methods": "List the merge methods, or show the page of one.",
    "collect": "Collect what data say of a model, for methods that need it.",
    "presets": "List recipes that studies have found good, or print one with models in its places.",
    "inspect": "Show what a model is made of.",
    "compare": "Show how fine-tuned models differ from their base, and from each other.",
    "bench": "Make real experts, and measure what merges of them can do.",
    "evaluate": "Score a model on the tasks of suites of experts, or of lm-evaluation-harness.",
    "verify": "Check every tensor of a merged model against its manifest.",
    "gc": "List what killed runs have left, and remove it when told to.",
}
GROUPS = {
    "collect": {
        "hidden": "Collect a model's hidden states after every layer, the mean over each text: what recall compares.",
        "gram": "Collect the Gram matrices of the inputs of a model's linear maps: what regressions know of data.",
        "outgram": "Collect the Gram matrices of the gradients at the outputs of a model's linear maps.",
        "fisher": "Collect the diagonal Fisher information of a model's weights: how much each one matters.",
        "typical": "Choose typical texts: clusters of a model's last hidden states, of each the text nearest to its centre.",
    },
    "bench": {
        "build": "Make the models of a suite of experts, or list the suites.",
        "run": "Score every merge method on a suite of experts.",
    },
}
"""Commands that have commands; `cuvee bench build` is `build` in the file of `bench`."""
_NAMES = {*COMMANDS, *(name for group in GROUPS.values() for name in group)}
_USAGE = {
    "merge": "Usage: cuvee merge [OPTIONS] RECIPE OUT\n       cuvee merge [OPTIONS] --preset NAME ROLE=MODEL... OUT\n"
    "       cuvee merge [OPTIONS] --continue OUT --add EXPERT",
    "plan": "Usage: cuvee plan [OPTIONS] RECIPE\n       cuvee plan [OPTIONS] --preset NAME ROLE=MODEL...",
    "collect hidden": "Usage: cuvee collect hidden [OPTIONS] MODEL TEXTS OUT.safetensors",
    "collect gram": "Usage: cuvee collect gram [OPTIONS] MODEL TEXTS OUT.safetensors",
    "collect outgram": "Usage: cuvee collect outgram [OPTIONS] MODEL TEXTS OUT.safetensors",
    "collect fisher": "Usage: cuvee collect fisher [OPTIONS] MODEL TEXTS OUT.safetensors",
    "collect typical": "Usage: cuvee collect typical [OPTIONS] MODEL TEXTS OUT.jsonl",
    "bench build": "Usage: cuvee bench build [OPTIONS] [SUITE]",
    "bench run": "Usage: cuvee bench run [OPTIONS] SUITE",
    "fda": "Usage: cuvee fda [OPTIONS] BASE EXPERT... --out FOLDER",
    "compare": "Usage: cuvee compare [OPTIONS] BASE EXPERT...",
    "presets": "Usage: cuvee presets [OPTIONS] [NAME [ROLE=MODEL...]]",
    "mergekit-yaml": "Usage: cuvee mergekit-yaml CONFIG OUT [FLAGS OF MERGEKIT-YAML]",
}
_HELP = """One model out of many: merge neural networks, streamed, in bounded memory.

A first merge:
  cuvee methods                   which methods there are
  cuvee methods ties              what one does, and a recipe to start from
  cuvee plan recipe.yml           what the merge will do
  cuvee merge recipe.yml out/     do it
"""

clock = Clock()
"""The time that the running command has taken."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code.

    Args:
        arguments: the command line after the program's name; None: that of the process.
    """
    global clock
    clock = Clock(age=process_age() if arguments is None else 0.0)
    _open_streams()
    if arguments is not None:
        sys.exit(_run(list(arguments)))
    _leave(_run(sys.argv[1:]))


def _open_streams() -> None:
    """Let output pass whatever the terminal's encoding is; where there is no stream, send it nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    """End the process. What the interpreter would do beyond this is to take torch apart, for 0.4 s."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command; returns the exit code of the process."""
    try:
        with stoppable():
            _call(arguments)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except BaseException as error:
        try:
            return _failed(error, arguments)
        except BrokenPipeError:
            _forget_stdout()
            return 2


def _call(arguments: list[str]) -> None:
    build(next((one for one in reversed(arguments[:2]) if one in _NAMES), ""))(
        arguments, exit_on_error=False, print_error=False, result_action="return_value"
    )


def _failed(error: BaseException, arguments: list[str]) -> int:
    """Say why the command failed; returns its exit code."""
    from cuvee.cli.failing import BUG, USER_ERROR, Interrupted, as_user_error, tell, tell_bug
    from cuvee.cli.usage import usage_error

    as_json = "--json" in arguments
    if isinstance(error, Stopped):
        goes_on = (
            "the same command again, which goes on where it stopped"
            if arguments[:1] in (["merge"], ["moe"], ["tokens"], ["bench"], ["evaluate"])
            else ""
        )
        tell(Interrupted("stopped", right=goes_on), as_json=as_json)
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else USER_ERROR
    if type(error).__module__.startswith("cyclopts."):
        tell(usage_error(error, GROUPS.get(arguments[0], COMMANDS)), as_json=as_json)  # type: ignore[arg-type]
        return USER_ERROR
    if (known := as_user_error(error)) is not None:
        tell(known, as_json=as_json)
        return USER_ERROR
    tell_bug(error, as_json=as_json)
    return BUG


def _forget_stdout() -> None:
    """Send what is still to be flushed nowhere: the reader of our output has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def build(called: str = "") -> App:
    """Return the command line; the file of a command is imported when it is called.

    Args:
        called: the command whose own help is wanted in full; of the others the list above says enough.
    """
    from cyclopts import App, Group, Parameter

    from cuvee.cli.help_pages import HelpPages

    options: dict[str, Any] = {"show_default": False, "negative": ()}
    app = App(
        name="cuvee",
        help=_HELP,
        help_format="plaintext",
        help_formatter=HelpPages(),
        version=__version__,
        default_parameter=Parameter(**options),
        group_parameters=Group("Options", sort_key=6),
        suppress_keyboard_interrupt=False,
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=6)
    for place, (name, summary) in enumerate(COMMANDS.items()):
        if name in GROUPS:
            app.command(_group(name, called, place, options))
            continue
        said = {} if name == called else {"help": summary}
        if name in _USAGE:
            said["usage"] = _USAGE[name]
        file = name.replace("-", "_")
        app.command(f"cuvee.cli.{file}:{file}", name=name, sort_key=place, **said)
    return app


def _group(name: str, called: str, place: int, options: Mapping[str, Any]) -> App:
    """Return a command that has commands, whose file is imported when one of them is called."""
    from cyclopts import App, Parameter

    from cuvee.cli.help_pages import HelpPages

    group = App(
        name=name,
        sort_key=place,
        help=COMMANDS[name],
        help_format="plaintext",
        help_formatter=HelpPages(),
        version_flags=(),
        default_parameter=Parameter(**options),
    )
    for command, summary in GROUPS[name].items():
        said = {} if command == called else {"help": summary}
        if (usage := _USAGE.get(f"{name} {command}")) is not None:
            said["usage"] = usage
        group.command(f"cuvee.cli.{name}:{command}", name=command, **said)
    return group
