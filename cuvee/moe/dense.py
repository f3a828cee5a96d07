"""What a dense model is to a mixture of experts: its sizes, its MLPs, and what lies around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.architectures import describe
from cuvee.checkpoints.sources import Model
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, printable

__all__ = ["DEFAULTS", "MLP", "Dense", "expert_misfits", "read_dense", "size_misfits"]

MLP = ("gate_proj", "up_proj", "down_proj")
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"max_position_embeddings": 4096 * 32, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {"max_position_embeddings": 32768, "use_sliding_window": False},
    "qwen3": {"max_position_embeddings": 32768, "use_sliding_window": False, "head_dim": 128},
}
"""What config.json of each family means where it says nothing, as far as the layouts' families mean something else."""
_ALIKE = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "num_attention_heads": 32}


@dataclass(frozen=True)
class Dense:
    """A dense decoder whose MLPs are gate, up and down projections.

    Attributes:
        model: its sources.
        family: the config's model_type, empty where there is no config.
        settings: config.json, what it leaves to its family's defaults filled in.
        layers, hidden, inner, vocabulary: sizes, read off the tensors.
        around: for each layer the names, after "model.layers.0.", of what is not in the MLP.
        in_mlp: the names of all tensors in MLPs, after "model.layers.0.mlp.".
        outside: names outside the layers.
        tied: the head is the embedding.
        dropped: name -> why a tensor of the file is not part of the model.
    """

    model: Model
    family: str
    settings: Mapping[str, Any]
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    around: Sequence[frozenset[str]]
    in_mlp: frozenset[str]
    outside: frozenset[str]
    tied: bool
    dropped: Mapping[str, str]

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        said = self.settings.get("head_dim")
        return int(said) if said else self.hidden // int(self.settings["num_attention_heads"])

    def rows(self, name: str) -> int:
        """Return the length of a tensor's first dimension."""
        return self.model.tensors[name].shape[0]

    @property
    def sizes(self) -> dict[str, int]:
        """What the tensors say of the sizes, under the keys of config.json."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocabulary,
            "head_dim": self.head_dim,
            "num_key_value_heads": self.rows("model.layers.0.self_attn.k_proj.weight") // self.head_dim,
        }

    @property
    def window(self) -> int | None:
        """How many tokens back attention sees, in some layer; None: all."""
        said = self.settings.get("sliding_window")
        uses = self.settings.get("use_sliding_window", self.family == "mistral")
        return int(said) if said and uses else None

    @property
    def rope_kind(self) -> str:
        """The kind of scaling of the rotary embedding, "default" where there is none."""
        said = self.settings.get("rope_parameters") or self.settings.get("rope_scaling") or {}
        return str(said.get("rope_type") or said.get("type") or "default")


def read_dense(model: Model) -> Dense:
    """Read a dense model.

    Raises:
        IncompatibleModels: its MLPs are not gate, up and down projections under the names of Llama and its kin.
    """
    config = model.config or {}
    tied = describe({name: source.shape for name, source in model.tensors.items()}, model.config).tied
    dropped = {name: f"tied to {target}" for name, target in tied.items() if name in model.tensors}
    places = {name: _LAYER.fullmatch(name) for name in model.tensors}
    buffers = {name for name in model.tensors if name.endswith("rotary_emb.inv_freq")}
    dropped |= dict.fromkeys(sorted(buffers), "a buffer that is computed anew")
    inside: dict[int, set[str]] = {}
    for name, place in places.items():
        if place and name not in dropped:
            inside.setdefault(int(place[1]), set()).add(place[2])
    layers = len(inside)
    _check_names(model, sorted(inside))
    embedding, gate = model.tensors[EMBEDDING].shape, model.tensors["model.layers.0.mlp.gate_proj.weight"].shape
    family = str(config.get("model_type") or "")
    settings = {**_ALIKE, **DEFAULTS.get(family, {}), **config}
    if model.config is not None:
        _check_settings(model, settings)
    return Dense(
        model,
        family,
        settings,
        layers,
        hidden=embedding[1],
        inner=gate[0],
        vocabulary=embedding[0],
        around=[frozenset(n for n in inside[i] if not n.startswith("mlp.")) for i in range(layers)],
        in_mlp=frozenset(n.removeprefix("mlp.") for names in inside.values() for n in names if n.startswith("mlp.")),
        outside=frozenset(name for name, place in places.items() if not place and name not in dropped),
        tied=HEAD in tied,
        dropped=dropped,
    )


def _check_names(model: Model, layers: list[int]) -> None:
    wanted = [EMBEDDING, *(f"model.layers.{i}.mlp.{part}.weight" for i in range(max(len(layers), 1)) for part in MLP)]
    missing = [name for name in wanted if name not in model.tensors]
    flat = [name for name in wanted if name in model.tensors and len(model.tensors[name].shape) != 2]
    if missing or flat or layers != list(range(len(layers))):
        name = (missing or flat or [f"model.layers.{len(layers)}."])[0]
        found = f"{model.label!r} has no tensor {name!r}" if missing else f"{name!r} of {model.label!r} is out of place"
        holds = ", ".join(repr(printable(name)) for name in sorted(model.tensors)[:3])
        raise IncompatibleModels(
            f"{found}: mixtures are made of dense models with gate, up and down projections",
            where=f"{model.label}, which holds {holds}, …",
            right="Llama, Mistral, Qwen2 or Qwen3 models",
        )


def _check_settings(model: Model, settings: Mapping[str, Any]) -> None:
    """Refuse values of config.json that could not be meant, or that the weights contradict.

    Raises:
        CheckpointError: naming the key.
    """
    heads, size = settings["num_attention_heads"], settings.get("head_dim")
    rope = [settings.get(key) for key in ("rope_parameters", "rope_scaling")]
    right = {
        "num_attention_heads": _is_count(heads),
        "head_dim": size is None or _is_count(size),
        "sliding_window": settings.get("sliding_window") is None or isinstance(settings["sliding_window"], int),
        "hidden_act": isinstance(settings["hidden_act"], str),
        "rms_norm_eps": isinstance(settings["rms_norm_eps"], float | int),
        "rope_theta": isinstance(settings["rope_theta"], float | int),
        "rope_parameters": rope[0] is None or isinstance(rope[0], Mapping),
        "rope_scaling": rope[1] is None or isinstance(rope[1], Mapping),
    }
    query = model.tensors.get("model.layers.0.self_attn.q_proj.weight")
    found = next((f"{key} is {settings[key]!r}" for key, is_right in right.items() if not is_right), "")
    if not found and query is not None and query.shape[0] != heads * (size or query.shape[-1] // heads):
        found = f"num_attention_heads is {heads} and head_dim {size}, but the queries have {query.shape[0]} rows"
    if found:
        where = str(model.folder / "config.json") if model.folder else f"config.json of {model.label}"
        raise CheckpointError(printable(found)[:200], where=where, right="the config.json that belongs to the weights")


def size_misfits(dense: Dense) -> list[CuveeError]:
    """Return where config.json and weights contradict each other: layers that are missing, a config of another model."""
    said = dense.model.config or {}
    where = str(dense.model.folder / "config.json") if dense.model.folder else dense.model.label
    return [
        CheckpointError(
            f"{key} is {printable(repr(said[key]))[:80]} in config.json, and {size} in the weights of {dense.model.label!r}",
            where=where,
            right="a complete model, with the config.json that belongs to the weights",
        )
        for key, size in dense.sizes.items()
        if said.get(key) not in (None, size)
    ]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def expert_misfits(base: Dense, expert: Dense, role: str) -> list[CuveeError]:
    """Return why an expert's MLPs cannot stand in the base's layers."""
    sizes: list[tuple[str, Any, Any]] = [
        ("layers", base.layers, expert.layers),
        ("hidden size", base.hidden, expert.hidden),
        ("MLP size", base.inner, expert.inner),
        ("activation", base.settings["hidden_act"], expert.settings["hidden_act"]),
    ]
    differ = [f"{what}: {ours} in the base, {theirs} in the expert" for what, ours, theirs in sizes if ours != theirs]
    for name in sorted(base.in_mlp ^ expert.in_mlp)[:1]:
        differ.append(f"only the {'base' if name in base.in_mlp else 'expert'} has mlp.{printable(name)}")
    if not differ:
        return _shape_misfits(base, expert, role)
    said = "; ".join(differ)
    return [
        IncompatibleModels(
            f"{role} {expert.model.label!r} does not fit the base {base.model.label!r}: {said}",
            where=expert.model.label,
            right="dense models of one size: fine-tunes of one base",
        )
    ]


def _shape_misfits(base: Dense, expert: Dense, role: str) -> list[CuveeError]:
    """Return the first MLP tensor whose shape is not the base's in its layer."""
    for layer in range(base.layers):
        for part in sorted(base.in_mlp):
            name = f"model.layers.{layer}.mlp.{part}"
            shapes = [one.model.tensors[name].shape if name in one.model.tensors else None for one in (base, expert)]
            if shapes[0] != shapes[1]:
                return [
                    IncompatibleModels(
                        f"tensor {name!r} is {shapes[1]} in {role} {expert.model.label!r} and {shapes[0]} in the base",
                        where=expert.model.label,
                        right="dense models of one size: fine-tunes of one base",
                    )
                ]
    return []
