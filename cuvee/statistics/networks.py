"""A model as a network that computes, and its tokenizer: by transformers, from the same sources that are merged."""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.architectures import Role, describe
from cuvee.checkpoints.sources import Model, read_all
from cuvee.errors import CheckpointError, IncompatibleModels, ResourceError, printable
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["layers_of", "linear_maps", "load_network", "load_words", "need_transformers"]

_NOT_SETTINGS = ("model_type", "quantization_config", "auto_map")


def need_transformers(what: str, extra: str) -> Any:
    """Import transformers.

    Raises:
        ResourceError: it is not installed; with the line that installs it.
    """
    try:
        import transformers
    except ImportError:
        right = f"pip install 'cuvee[{extra}]'"
        raise ResourceError(f"{what} needs transformers, which is not installed", right=right) from None
    return transformers


def load_words(model: Model, what: str, instead: str = "") -> Any:
    """Return a model's tokenizer, as transformers loads it from the model's folder. No code of the folder is run.

    Args:
        what: how errors call what needs it.
        instead: what would do without one.

    Raises:
        CheckpointError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    other = f"; or {instead}" if instead else ""
    if model.folder is None:
        raise CheckpointError(
            f"{model.label!r} has no tokenizer beside its weights, which {what} needs",
            right=f"a folder or a hub id{other}",
        )
    try:
        return AutoTokenizer.from_pretrained(str(model.folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the files make it raise
        said = printable(str(error).split("\n")[0].rstrip(" :"))
        raise CheckpointError(
            f"the tokenizer of {model.label!r} cannot be loaded: {type(error).__name__}: {said[:200]}",
            where=str(model.folder),
            right=f"the tokenizer's files in the model's folder{other}",
        ) from None


def load_network(model: Model, *, device: str = "cpu", attention: str | None = None) -> nn.Module:
    """Return a model as a network in float32, of the class that its config.json names.

    Args:
        device: "cpu" or "cuda".
        attention: how transformers computes it: "eager" can be differentiated twice; None: as it likes.

    Raises:
        ResourceError: transformers is not installed.
        IncompatibleModels: there is no config.json, transformers does not know the class, or weights are missing.
    """
    transformers = need_transformers("a forward pass", "statistics")
    config = model.config or {}
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        found = f"config.json names no architecture of transformers: {printable(repr(named))[:100]}"
        raise IncompatibleModels(found, where=model.label, right='"architectures": ["LlamaForCausalLM"], or the like')
    if config.get("is_encoder_decoder"):
        found = "an encoder with a decoder cannot be shown texts alone"
        raise IncompatibleModels(found, where=model.label, right="a decoder or an encoder")
    try:
        settings = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
        shape = transformers.AutoConfig.for_model(config.get("model_type", ""), **settings)
        with _silent(transformers):
            network, said = kind.from_pretrained(
                None,
                config=shape,
                state_dict={name: read_all(source) for name, source in model.tensors.items()},
                output_loading_info=True,
                dtype=torch.float32,
                **({} if attention is None else {"attn_implementation": attention}),
            )
    except Exception as error:  # transformers raises whatever config and weights make it raise
        raise IncompatibleModels(
            f"transformers cannot make a {name} of this model: {type(error).__name__}: {printable(str(error))[:200]}",
            where=model.label,
            right="config.json and weights of one model, which transformers loads",
        ) from None
    missing = sorted({*said["missing_keys"], *(str(key[0]) for key in said["mismatched_keys"])})
    known = describe(dict.fromkeys(missing, (1,)))
    missing = [
        one for one in missing if known.meaning(one).role is not Role.POOLER
    ]  # nothing that is asked for is behind it
    if missing:
        found = f"{len(missing)} weights of a {name} are missing or of another shape, such as {missing[0]!r}"
        raise IncompatibleModels(found, where=model.label, right="config.json and weights of one model")
    if "input_ids" not in inspect.signature(network.forward).parameters:
        raise IncompatibleModels(f"a {name} reads no text", where=model.label, right="a decoder or an encoder of text")
    return network.to(device).eval()


def layers_of(model: Model, network: nn.Module) -> dict[str, nn.Module]:
    """Return the network's layers by name, those of each stack in order."""
    architecture = describe({name: source.shape for name, source in model.tensors.items()}, model.config)
    names = [f"{stack}.{n}" for stack, count in architecture.stacks.items() for n in range(count)]
    modules = dict(network.named_modules())
    found = {name: modules[name] for name in names if name in modules}
    if not found:
        right = "a model whose layers are a list, under the names of its weights"
        raise IncompatibleModels("the network has no layers that its tensors name", where=model.label, right=right)
    return found


def linear_maps(model: Model, network: nn.Module, only: Sequence[str]) -> dict[str, nn.Module]:
    """Return the network's linear maps by name: those that the model has the weight of, and whose names match a pattern."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's, a linear map all the same

    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and f"{name}.weight" in model.tensors
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
    }


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing bars and from advice meanwhile."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
