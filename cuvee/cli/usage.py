"""A command line that cannot be understood, said in the house's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from cuvee.errors import CuveeError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cyclopts import CycloptsError

__all__ = ["UsageError", "usage_error"]


class UsageError(CuveeError):
    """The command line is wrong: an unknown command or option, or a value of the wrong form."""


def usage_error(error: CycloptsError, commands: Iterable[str]) -> UsageError:
    """Return what is wrong with the command line.

    Args:
        error: what the parser says.
        commands: the names of all commands.
    """
    import cyclopts

    error.verbose = False
    command = " ".join(("cuvee", *(error.command_chain or ())))
    look = f"{command} --help"
    if isinstance(error, cyclopts.UnknownCommandError):
        found, right = f"unknown command {(error.unused_tokens or ['?'])[0]!r}", nearest(_first_unused(error), commands)
        look = "cuvee --help"
    elif isinstance(error, cyclopts.UnknownOptionError):
        option = (error.token.keyword or error.token.value).split("=")[0]
        found, right = f"unknown option {option!r}", nearest(option, _options(error))
    elif isinstance(error, cyclopts.MissingArgumentError):
        found, right = _missing(error, command)
    elif isinstance(error, cyclopts.CoercionError):
        found, right = _wrong_form(error)
    elif isinstance(error, cyclopts.RepeatArgumentError):
        found, right = f"{error.token.keyword} is given twice", "give it once"
    elif isinstance(error, cyclopts.ValidationError) and error.argument is not None:
        found, right = _out_of_range(error)
    elif isinstance(error, cyclopts.UnusedCliTokensError):
        found, right = f"one argument too many: {_first_unused(error)!r}", f"see {look}"
    else:
        found, right = str(error).rstrip("."), f"see {look}"
    return UsageError(found, where=command, right=right)


def _first_unused(error: CycloptsError) -> str:
    return str((error.unused_tokens or ["?"])[0])


def _options(error: Any) -> list[str]:
    return [name for argument in error.argument_collection for name in argument.names if name.startswith("--")]


def _missing(error: Any, command: str) -> tuple[str, str]:
    name = error.keyword or error.argument.name
    if name.startswith("-"):
        return f"{name} needs a value", _form(name, error.argument.hint)
    usage = f"{command} {' '.join(_arguments(error))}".strip()
    return f"{name.upper()} is missing", f"{usage}; see {command} --help"


def _arguments(error: Any) -> list[str]:
    """Return the positional arguments of the command that was meant."""
    import inspect

    if error.app is None:
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    collection = error.app.assemble_argument_collection()
    shown = [(a.names[0], a.field_info.kind) for a in collection if a.show]
    return [name + ("…" if kind is positional[1] else "") for name, kind in shown if kind in positional]


def _wrong_form(error: Any) -> tuple[str, str]:
    name = (error.token.keyword if error.token else None) or (error.argument.name if error.argument else "a value")
    value = error.token.value if error.token else ""
    return f"{name} is {value!r}", _form(name, error.target_type)


def _out_of_range(error: Any) -> tuple[str, str]:
    token = error.argument.tokens[0] if error.argument.tokens else None
    name = (token.keyword if token else None) or error.argument.name
    said = error.exception_message.rstrip(".").removeprefix("Must be >= ")
    return f"{name} is {token.value if token else error.argument.value!r}", f"{name} {said}, or more"


def _form(name: str, hint: Any) -> str:
    """Return what an option of a type accepts, as something to type."""
    if get_origin(hint) is Literal:
        return " or ".join(f"{name} {choice}" for choice in get_args(hint))
    known = {int: "a whole number", float: "a number"}
    words = next((words for kind, words in known.items() if hint is kind or kind in get_args(hint)), "a value")
    return f"{name} with {words}"
