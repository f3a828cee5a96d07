"""`cuvee collect`: what data say of a model, for methods that need it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.cli.amounts import in_bytes, plural
from cuvee.cli.options import AsJson, Clusters, Device, MaxTokens, Modules, Offline, Overwrite, Quiet, Token
from cuvee.cli.screen import print_json, prose, screen, show

if TYPE_CHECKING:
    from cuvee.checkpoints.sources import Model
    from cuvee.statistics import Statistics

__all__ = ["gram", "hidden", "typical"]


def hidden(
    model: str,
    texts: str,
    out: str,
    /,
    *,
    max_tokens: MaxTokens = 512,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Collect a model's hidden states after every layer, the mean over each text: what recall compares.

    All models of a merge must be shown the same texts.

    Args:
        model: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    target = _target(out, overwrite=overwrite)
    from cuvee.statistics import collect_hidden, read_texts

    read = read_texts(Path(texts))
    with _opened(model, offline, token) as opened, _shown(model, wanted=not quiet) as watch:
        found = collect_hidden(opened, read, max_tokens=max_tokens, device=device, watch=watch)
    _publish(found, target, quiet=quiet, json=json)


def gram(
    model: str,
    texts: str,
    out: str,
    /,
    *,
    only: Modules = None,
    max_tokens: MaxTokens = 512,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Collect the Gram matrices of the inputs of a model's linear maps: what regressions know of data.

    bayesian_model_merging, mats and the edit reforge use them. Each model is shown texts of its own task. All matrices
    are in memory meanwhile: --only collects some.

    Args:
        model: a folder, a hub id, model+adapter; with a tokenizer.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: safetensors file to write.
    """
    target = _target(out, overwrite=overwrite)
    from cuvee.statistics import collect_gram, read_texts

    read = read_texts(Path(texts))
    with _opened(model, offline, token) as opened, _shown(model, wanted=not quiet) as watch:
        found = collect_gram(opened, read, only=only or ["*"], max_tokens=max_tokens, device=device, watch=watch)
    _publish(found, target, quiet=quiet, json=json)


def typical(
    model: str,
    texts: str,
    out: str,
    /,
    *,
    count: Clusters = 20,
    max_tokens: MaxTokens = 512,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Choose typical texts: clusters of a model's last hidden states, of each the text nearest to its centre.

    Args:
        model: the newest of those to be merged.
        texts: file of one text a line, or .jsonl of {"text": …}.
        out: .jsonl file to write.
    """
    from cuvee.cli.usage import UsageError

    target = _target(out, overwrite=overwrite)
    if target.suffix != ".jsonl":
        raise UsageError("the chosen texts are written as JSON", where=out, right=f"{target.with_suffix('.jsonl')}")
    from cuvee.checkpoints.publishing import os_errors
    from cuvee.statistics import read_texts, typical_texts
    from cuvee.statistics.texts import write_texts

    read = read_texts(Path(texts))
    with _opened(model, offline, token) as opened, _shown(model, wanted=not quiet) as watch:
        chosen = typical_texts(opened, read, count, max_tokens=max_tokens, device=device, watch=watch)
    with os_errors(target):
        write_texts(target, chosen)
    if json:
        print_json({"out": str(target), "texts": len(chosen), "of": len(read)})
    elif not quiet:
        show(screen(), prose(f"{plural(len(chosen), 'text')} of {len(read)} in {target}"))


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
def _opened(model: str, offline: bool, token: str | None) -> Iterator[Model]:
    from cuvee.checkpoints.opening import open_model

    opened = open_model(model, offline=offline, token=token)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _shown(model: str, *, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Show in a terminal how many texts are done."""
    console = screen(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda done, total: None
        return
    with console.status(f"running {model}", spinner="dots") as status:
        yield lambda done, total: status.update(f"running {model}: text {done} of {total}")


def _publish(found: Statistics, target: Path, *, quiet: bool, json: bool) -> None:
    from cuvee.checkpoints.publishing import os_errors

    with os_errors(target):
        found.write(target)
    size = sum(tensor.nbytes for tensor in found.tensors.values())
    if json:
        said = {
            "texts": found.texts,
            "tokens": found.tokens,
            "tensors": len(found.tensors),
            "shared": len(found.shared),
        }
        print_json({"out": str(target), **said, "bytes": size})
    elif not quiet:
        shared = f", {len(found.shared)} more that share them" if found.shared else ""
        counts = f"{plural(found.texts, 'text')}, {found.tokens} tokens: {plural(len(found.tensors), 'tensor')}{shared}"
        show(screen(), prose(f"{counts}, {in_bytes(size)} in {target}"))
