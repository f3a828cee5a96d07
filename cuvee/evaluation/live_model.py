"""A live model: a module of transformers in this process whose tensors are replaced in place, candidate after candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cuvee.checkpoints.sidecars import Sidecar, config_json
from cuvee.errors import CheckpointError, IncompatibleModels, NonFinite, printable
from cuvee.evaluation.in_memory import InMemory, first_non_finite
from cuvee.evaluation.kept_scores import digest_of, key_of
from cuvee.evaluation.lm_eval_guest import import_lm_eval, quietly
from cuvee.tensors.devices import need_device

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LiveModel", "live_model"]

_BATCH = 4
_OF_TOKENIZERS = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_MAX_BYTES = 64 << 20


@dataclass
class LiveModel:
    """A module with its tokenizer, as lm-evaluation-harness wants them.

    Attributes:
        label: whose tensors it holds.
        lm: `lm_eval.models.huggingface.HFLM` around the module.
        key: a digest of architecture, tokenizer, dtype and device, beside the tensors.
        notes: for the user.
    """

    label: str
    lm: Any = field(repr=False)
    key: str
    notes: tuple[str, ...] = ()
    _digest: str = field(default="", repr=False)

    @property
    def module(self) -> Any:
        """The module, a `PreTrainedModel` in eval mode without gradients."""
        return self.lm.model

    def fill(self, tensors: Mapping[str, Tensor] | nn.Module, label: str = "") -> None:
        """Let the module compute with these tensors, written in place into its own: whole, so that nothing adds up.

        They are rounded once, to the module's dtype. Nothing is written when any of them does not fit.

        Args:
            tensors: by the names of the checkpoint or of the module, on any device; they are read, and not kept.
            label: whose they are.

        Raises:
            IncompatibleModels: they are not those of such a module.
            NonFinite: one holds NaN or Inf.
        """
        given = tensors if isinstance(tensors, Mapping) else tensors.state_dict()
        own = self.module.state_dict(keep_vars=True)
        if not given.keys() <= own.keys():
            # Some architectures are stored under other names than their modules have, or their experts one by one.
            given = _module_of(type(self.module), self.module.config, given, label or "the candidate").state_dict()
        sources = _sources(own, given, label or "the candidate")
        with torch.no_grad():
            for name, tensor in sources.items():
                own[name].data.copy_(tensor)
        self.label, self._digest = label or self.label, ""

    @property
    def digest(self) -> str:
        """Of the tensors as the module holds them."""
        if not self._digest:
            self._digest = digest_of(self.module.state_dict())
        return self._digest


def live_model(model: InMemory, *, device: str = "cpu", batch_size: int = _BATCH) -> LiveModel:
    """Make a module of a model's config and tensors, which it takes over: the caller must not change them.

    No code that comes with a model is run.

    Args:
        model: what `in_memory` has read or merged.
        device: "cpu" or "cuda".
        batch_size: sequences at once; halved by itself when memory of a GPU runs out.

    Raises:
        ResourceError: lm_eval, transformers or the device is missing.
        CheckpointError: no config.json, no tokenizer, or none that transformers has.
        IncompatibleModels: the tensors are not those that config.json promises.
        NonFinite: a tensor holds NaN or Inf.
    """
    need_device(device)
    import_lm_eval()
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    kind, config = _architecture(model)
    tokenizer, note = _tokenizer(model)
    _check_finite(model.tensors, model.label)
    module = _module_of(kind, config, model.tensors, model.label).to(device)
    files = _of_tokenizer(model.sidecars)
    with quietly():
        if said := next((one for one in files if one.name == "generation_config.json"), None):
            module.generation_config = GenerationConfig.from_dict(said.read_object(_MAX_BYTES))
        lm = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=batch_size)
    texts = {one.name: one.read(_MAX_BYTES).hex() for one in files}
    key = key_of(config.to_diff_dict(), texts, str(module.dtype), torch.device(device).type)
    return LiveModel(model.label, lm, key, note)


def _sources(own: Mapping[str, Tensor], given: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Return what is written to which of the module's own tensors; a tied one is written once, under either name."""
    sources: dict[str, Tensor] = {}
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in own.items():
        place = (tensor.data_ptr(), tuple(tensor.stride()))
        twin = first.setdefault(place, name) if tensor.numel() else name
        if name not in given:
            continue
        if given[name].shape != tensor.shape:
            raise IncompatibleModels(
                f"tensor {printable(name)!r} is {tuple(given[name].shape)} in {label} and {tuple(tensor.shape)} in the "
                "live model",
                right="a model of the same shape",
            )
        if twin in sources and not torch.equal(sources[twin].to(given[name].device), given[name]):
            raise IncompatibleModels(
                f"tensors {printable(twin)!r} and {printable(name)!r} differ in {label}, and are tied in the live model",
                right='a live model made with "tie_word_embeddings": false',
            )
        sources.setdefault(twin, given[name])
    lacking = [
        name for name, tensor in own.items() if first.get((tensor.data_ptr(), tensor.stride()), name) not in sources
    ]
    if lacking:
        raise IncompatibleModels(f"{label} lacks tensor {printable(lacking[0])!r}", right="a model of the same shape")
    _check_finite(sources, label)
    return sources


def _check_finite(tensors: Mapping[str, Tensor], label: str) -> None:
    broken = first_non_finite(tensors)
    if broken is not None:
        found = f"tensor {printable(broken)!r} holds NaN or Inf"
        raise NonFinite(found, where=label, right="merge with other parameters")


def _architecture(model: InMemory) -> tuple[Any, Any]:
    """Return the class of the module and its config."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    said = dict(model.config or {})
    name = said.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError(
            "there is no config.json that says what the model is" if not said else "config.json names no model_type",
            where=model.label,
            right="a folder of Hugging Face form: config.json, weights, tokenizer",
        )
    try:
        config = transformers.AutoConfig.for_model(**said)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        first = printable(str(error).splitlines()[0])[:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot use config.json: {first}",
            where=model.label,
            right="another version of transformers; code that comes with a model is not run",
        ) from None
    for mapping in (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            kind = mapping[type(config)]
            return (kind[0] if isinstance(kind, tuple) else kind), config
    raise CheckpointError(
        f"models of type {printable(name)!r} write no text", where=model.label, right="a language model, or our suites"
    )


def _module_of(kind: Any, config: Any, tensors: Mapping[str, Tensor], label: str) -> Any:
    """Return a module with these tensors, whose names transformers understands."""
    with quietly():
        try:
            module, said = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype="auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            first = printable(str(error).splitlines()[0])[:200] if str(error) else type(error).__name__
            raise IncompatibleModels(
                f"transformers cannot build {label}: {first}", right="cuvee verify --load"
            ) from None
    for key, words in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has a strange"),
        ("mismatched_keys", "has a wrong"),
    ):
        if names := sorted(str(one[0] if isinstance(one, tuple) else one) for one in said.get(key) or ()):
            raise IncompatibleModels(
                f"{label} {words} tensor {printable(names[0])!r}", right="tensors that are those of its config.json"
            )
    return module.eval().requires_grad_(False)


def _tokenizer(model: InMemory) -> tuple[Any, tuple[str, ...]]:
    """Load the tokenizer from a folder of its small files; one without a token for the end is given one."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="cuvee-tokenizer-") as folder, quietly():
        for one in _of_tokenizer(model.sidecars):
            path = Path(folder) / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(one.read(_MAX_BYTES))
        (Path(folder) / "config.json").write_bytes(config_json(dict(model.config or {})))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # of transformers, tokenizers or sentencepiece, each with its own kinds
            first = printable(str(error).splitlines()[0])[:200] if str(error) else type(error).__name__
            raise CheckpointError(
                f"the model has no tokenizer that can be loaded: {first.replace(folder, model.label)}",
                where=model.label,
                right="tokenizer.json and tokenizer_config.json beside the weights",
            ) from None
    if tokenizer.eos_token is not None:
        return tokenizer, ()
    # The harness would add a token, for which a model has no row.
    tokenizer.eos_token = tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer, (f"the tokenizer names no end of text; its token {tokenizer.eos_token!r} stands for it",)


def _of_tokenizer(sidecars: Any) -> list[Sidecar]:
    """Return the files that a tokenizer may be made of."""
    found = [one for one in sidecars if one.name.endswith(_OF_TOKENIZERS) and one.name.count("/") < 2]
    return [one for one in found if not one.name.endswith(".index.json") and one.size <= _MAX_BYTES]
