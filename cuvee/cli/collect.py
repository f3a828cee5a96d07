"""`cuvee collect`: what data say of a model, for methods that need it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cuvee.cli.amounts import in_bytes, plural
from cuvee.cli.options import AsJson, Clusters, Device, Draws, MaxTokens, Modules, Offline, Overwrite, Quiet, Token
from cuvee.cli.screen import print_json, prose, screen, show

if TYPE_CHECKING:
    from cuvee.statistics import Statistics

__all__ = ["CollectOptions", "fisher", "gram", "hidden", "outgram", "typical"]


@Parameter(name="*")
@dataclass(frozen=True)
class CollectOptions:
    """The options of every command that shows texts to a model."""

    max_tokens: MaxTokens = 512
    device: Device = "cpu"
    overwrite: Overwrite = False
    offline: Offline = False
    token: Token = None
    quiet: Quiet = False
    json: AsJson = False


_DEFAULTS = CollectOptions()


def hidden(model: str, texts: str, out: str, /, *, options: CollectOptions = _DEFAULTS) -> None:
    """Collect a model's hidden states after every layer, the mean over each text: what recall compares.

    All models of a merge must be shown the same texts.

    Args:
        model: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    _collect("hidden", model, texts, out, options)


def gram(model: str, texts: str, out: str, /, *, only: Modules = None, options: CollectOptions = _DEFAULTS) -> None:
    """Collect the Gram matrices of the inputs of a model's linear maps: what regressions know of data.

    bayesian_model_merging, mats and the edit reforge use them. Each model is shown texts of its own task. All matrices
    are in memory meanwhile: --only collects some.

    Args:
        model: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    _collect("gram", model, texts, out, options, only=only or ["*"])


def outgram(
    model: str,
    texts: str,
    out: str,
    /,
    *,
    only: Modules = None,
    draws: Draws = 1,
    options: CollectOptions = _DEFAULTS,
) -> None:
    """Collect the Gram matrices of the gradients at the outputs of a model's linear maps.

    They are expected over the model's own predictions. mats uses them with objective: block_fisher, beside those of the
    inputs, which the file holds too. Each model is shown texts of its own task. Needs the memory of a backward pass; all
    matrices are in memory meanwhile.

    Args:
        model: a language model or a classifier of texts: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    _collect("outgram", model, texts, out, options, only=only or ["*"], draws=draws)


def fisher(
    model: str,
    texts: str,
    out: str,
    /,
    *,
    only: Modules = None,
    draws: Draws = 1,
    options: CollectOptions = _DEFAULTS,
) -> None:
    """Collect the diagonal Fisher information of a model's weights: how much each one matters.

    It is expected over the model's own predictions. mats uses it with objective: diag_fisher. Each model is shown texts of
    its own task. Needs three times the memory of the model in float32: --only collects some.

    Args:
        model: a language model or a classifier of texts: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    _collect("fisher", model, texts, out, options, only=only or ["*"], draws=draws)


def typical(model: str, texts: str, out: str, /, *, count: Clusters = 20, options: CollectOptions = _DEFAULTS) -> None:
    """Choose typical texts: clusters of a model's last hidden states, of each the text nearest to its centre.

    Args:
        model: the newest of those to be merged.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: .jsonl file to write.
    """
    from cuvee.cli.usage import UsageError

    target = _target(out, overwrite=options.overwrite)
    if target.suffix != ".jsonl":
        raise UsageError("the chosen texts are written as JSON", where=out, right=f"{target.with_suffix('.jsonl')}")
    from cuvee.checkpoints.publishing import os_errors
    from cuvee.statistics import typical_texts
    from cuvee.statistics.texts import write_texts

    read, chosen = _run(typical_texts, model, texts, options, count=count)
    with os_errors(target):
        write_texts(target, chosen)
    if options.json:
        print_json({"out": str(target), "texts": len(chosen), "of": len(read)})
    elif not options.quiet:
        show(screen(), prose(f"{plural(len(chosen), 'text')} of {len(read)} in {target}"))


def _collect(kind: str, model: str, texts: str, out: str, options: CollectOptions, **settings: Any) -> None:
    """Collect one kind of statistics, and write them."""
    target = _target(out, overwrite=options.overwrite)
    import cuvee.statistics

    _, found = _run(getattr(cuvee.statistics, f"collect_{kind}"), model, texts, options, **settings)
    _publish(found, target, options)


def _run(
    collect: Callable[..., Any], model: str, texts: str, options: CollectOptions, **settings: Any
) -> tuple[list[str], Any]:
    """Return the texts of a file, and what comes of showing them to a model."""
    from cuvee.checkpoints.opening import open_model
    from cuvee.statistics import read_texts

    read = read_texts(Path(texts))
    opened = open_model(model, offline=options.offline, token=options.token)
    try:
        with _shown(model, wanted=not options.quiet) as watch:
            found = collect(opened, read, max_tokens=options.max_tokens, device=options.device, watch=watch, **settings)
    finally:
        opened.close()
    return read, found


def _target(out: str, *, overwrite: bool) -> Path:
    """Return the path of the output, before anything is computed for it."""
    from cuvee.checkpoints import fs
    from cuvee.errors import ResourceError

    path = Path(os.path.abspath(out))
    if fs.is_folder(path):
        raise ResourceError(
            "the output is a file, and this is a folder", where=str(path), right=str(path / "a.safetensors")
        )
    if fs.exists(path) and not overwrite:
        raise ResourceError("the output file exists", where=str(path), right="another name, or --overwrite")
    if not fs.is_folder(path.parent):
        raise ResourceError(
            "there is no such folder", where=str(path.parent), right="the name of a file in one that is there"
        )
    return path


@contextmanager
def _shown(model: str, *, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Show in a terminal how many texts are done."""
    console = screen(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda done, total: None
        return
    with console.status(f"running {model}", spinner="dots") as status:
        yield lambda done, total: status.update(f"running {model}: text {done} of {total}")


def _publish(found: Statistics, target: Path, options: CollectOptions) -> None:
    from cuvee.checkpoints.publishing import os_errors

    with os_errors(target):
        found.write(target)
    size = sum(tensor.nbytes for tensor in found.tensors.values())
    if options.json:
        said = {
            "texts": found.texts,
            "tokens": found.tokens,
            "tensors": len(found.tensors),
            "shared": len(found.shared),
            "unreached": found.unreached,
        }
        print_json({"out": str(target), **said, "bytes": size})
    elif not options.quiet:
        shared = f", {len(found.shared)} more that share them" if found.shared else ""
        counts = f"{plural(found.texts, 'text')}, {found.tokens} tokens: {plural(len(found.tensors), 'tensor')}{shared}"
        show(screen(), prose(f"{counts}, {in_bytes(size)} in {target}"))
        if found.unreached:
            show(
                screen(), prose(f"matrices of experts that no token reached: {found.unreached}; more texts reach more")
            )
