"""Functional dual anchors over a whole model: each layer of the base trained on the anchors of every expert.

One network is built; of the experts only one layer at a time is in memory. A layer follows from its parameters in all
models, the settings and the libraries, and is kept under a digest of these and of the layers before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from blake3 import blake3

from cuvee.checkpoints.publishing import os_errors
from cuvee.checkpoints.sidecars import merged_config, sidecars_of
from cuvee.checkpoints.sources import MemoryTensor, Model, natural_dtype, read_all
from cuvee.engine.copying import plan_copies
from cuvee.engine.keeping import ResultsInFolder
from cuvee.engine.matching import BASE
from cuvee.engine.models import open_models
from cuvee.engine.plan import Asked, Plan
from cuvee.engine.tasks import Input, Task
from cuvee.errors import IncompatibleModels, MethodError, NonFinite
from cuvee.learning.anchors import Loss, Start, adapt, construct_anchors, start_of_anchors
from cuvee.statistics.networks import layers_of, load_network
from cuvee.tensors.layout import Layout
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["AnchorSettings", "LayerReport", "plan_anchors"]

MERGED = -2
_LEARNED = -3


@dataclass(frozen=True)
class AnchorSettings:
    """How anchors are made and used.

    Attributes:
        part: what is trained of each layer: all of it, or its MLP (official for language models).
        anchors: of each expert at each layer. The paper: 64, for MLPs of language models 8192.
        tokens: of each anchor. The paper: 5 to 257, for MLPs 1.
        steps: of the construction. The paper: 1200, for MLPs 200.
        start: where anchors begin, see `start_of_anchors`.
        epochs, learning_rate, batch, loss: of the training. The paper: 25 to 125 epochs, 1e-5 or 5e-5 from the base, 1e-2
            from a merged model.
        seed: of all draws.
        device: "cpu" or "cuda".
    """

    part: Literal["layer", "mlp"] = "layer"
    anchors: int = 64
    tokens: int = 16
    steps: int = 1200
    start: Start = "weights"
    epochs: int = 100
    learning_rate: float | None = None
    batch: int = 128
    loss: Loss = "cosine"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in {"anchors": 1, "tokens": 1, "steps": 0, "epochs": 0, "batch": 1}.items():
            if getattr(self, name) < least:
                raise MethodError(f"{name} is {getattr(self, name)}", right=f"{name}: {least} or more")

    def rate(self, is_merged: bool) -> float:
        """Return the rate of the training: 1e-2 for coefficients of a merged model, 1e-5 for the base's own parameters."""
        return self.learning_rate if self.learning_rate is not None else 1e-2 if is_merged else 1e-5


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of its module.
        cosines: of each expert, before the construction and of the anchors that were kept.
        losses: the mismatch on all anchors, before and after the training.
    """

    name: str
    cosines: Sequence[tuple[float, float]]
    losses: tuple[float, float]


def plan_anchors(
    base: Any,
    experts: Sequence[Any],
    settings: AnchorSettings = AnchorSettings(),
    *,
    merged: Any = None,
    offline: bool = False,
    token: str | None = None,
    learned: str | PathLike[str] | None = None,
    watch: Callable[[LayerReport, int, int], None] | None = None,
    **options: Any,
) -> Plan:
    """Train every layer of the base, or of a merged model, on anchors of the experts, and plan the model that comes out.

    What is in no layer comes from the merged model, or the base. `cuvee.run` publishes it.

    Args:
        base, experts, merged: folders, hub ids, model+adapter, of one architecture that transformers loads.
        learned: a folder in which every layer is kept as soon as it is done: an equal call goes on where one was stopped.
        watch: told each layer when it is done, how many are, of all.
        options: of `plan_copies`: memory, threads, shard_size.

    Raises:
        IncompatibleModels: a model lacks weights of a layer; transformers does not load the base.
        MethodError: a layer has no MLP, or nothing to begin anchors with.
        NonFinite: the training diverged.
    """
    if not experts:
        raise MethodError("no experts are named", right="one or more fine-tunes of the base")
    wanted = {BASE: base, **dict(enumerate(experts))} | ({} if merged is None else {MERGED: merged})
    models = open_models(wanted, offline=offline, token=token)
    first = models.get(MERGED, models[BASE])
    network = load_network(models[BASE], device=settings.device, attention="eager")
    layers = _parts(layers_of(models[BASE], network), settings.part)
    calls = dict(_calls_of(network, layers, settings))
    read = {number: blake3() for number in models}
    made: dict[str, Tensor] = {}
    for done, (name, module) in enumerate(layers.items()):
        held = {
            number: _parameters(model, name, module, settings.device, read[number]) for number, model in models.items()
        }
        answer = _as_function(module, calls[name])
        train = partial(_train, name, answer, calls[name].width, held, settings)
        key = _key(name, read, settings, models[BASE].config)
        layer = train() if learned is None else _once(Path(learned), key, train)
        made |= {f"{name}.{own}": tensor.cpu() for own, tensor in layer.parameters.items()}
        if watch:
            watch(layer.report, done + 1, len(layers))
    return _plan(models, first, made, settings, {models[n].label: d.hexdigest() for n, d in read.items()}, options)


class _Layer(NamedTuple):
    """A layer that was trained, and what is told of it."""

    parameters: Mapping[str, Tensor]
    report: LayerReport


def _once(folder: Path, key: str, train: Callable[[], _Layer]) -> _Layer:
    """Return the layer that the folder keeps under a key, or train it and keep it there."""
    kept = ResultsInFolder(folder, "layer")
    with os_errors(folder):
        found = kept.get(key)
    if found is not None:
        said, *tensors = found
        name, names, cosines, losses = json.loads(bytes(said.tolist()))
        return _Layer(dict(zip(names, tensors, strict=True)), LayerReport(name, [*map(tuple, cosines)], tuple(losses)))
    layer = train()
    report = layer.report
    described = json.dumps([report.name, list(layer.parameters), report.cosines, report.losses]).encode()
    with os_errors(folder):
        kept.put(key, (torch.frombuffer(bytearray(described), dtype=torch.uint8), *layer.parameters.values()))
    return layer


class _Call(NamedTuple):
    """What a layer is given beside its input, and the width of that."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    width: int


def _parts(layers: Mapping[str, nn.Module], part: str) -> dict[str, nn.Module]:
    if part == "layer":
        return dict(layers)
    found: dict[str, Any] = {f"{name}.mlp": layer.mlp for name, layer in layers.items() if hasattr(layer, "mlp")}
    if len(found) < len(layers):
        missing = next(name for name in layers if f"{name}.mlp" not in found)
        raise MethodError(f"the layer {missing!r} has no part called mlp", right="part: layer")
    return found


def _calls_of(network: Any, layers: Mapping[str, nn.Module], settings: AnchorSettings) -> Iterator[tuple[str, _Call]]:
    """Yield what each layer is given beside its input: positions and masks for as many tokens as an anchor has."""
    found: dict[str, _Call] = {}
    handles = []
    for name, module in layers.items():

        def before(_: Any, inputs: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            states = inputs[0] if inputs else named["hidden_states"]
            rest = {key: value for key, value in named.items() if key != "hidden_states"}
            found[name] = _Call(inputs[1:], rest, states.shape[-1])

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        most = getattr(network.config, "max_position_embeddings", None)
        if isinstance(most, int) and settings.tokens > most:
            raise MethodError(f"tokens is {settings.tokens}, and the model reads up to {most}", right=f"tokens: {most}")
        network.config.use_cache = False
        with torch.no_grad():
            network(input_ids=torch.zeros(1, settings.tokens, dtype=torch.long, device=settings.device))
    finally:
        for handle in handles:
            handle.remove()
    yield from found.items()


def _as_function(module: nn.Module, call: _Call) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    def layer(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        output = torch.func.functional_call(module, dict(parameters), (inputs, *call.positional), dict(call.named))
        return output[0] if isinstance(output, tuple) else output

    return layer


def _parameters(model: Model, name: str, module: nn.Module, device: str, read: Any) -> dict[str, Tensor]:
    """Read the parameters of a layer of one model, in float32."""
    found = {}
    for own, wanted in module.named_parameters():
        source = model.tensors.get(f"{name}.{own}")
        if source is None or source.shape != tuple(wanted.shape):
            said = "is missing" if source is None else f"is {source.shape}"
            raise IncompatibleModels(
                f"tensor '{name}.{own}' {said}, and the base's is {tuple(wanted.shape)}",
                where=model.label,
                right="models of one architecture",
            )
        found[own] = read_all(source, torch.float32)
        if not bool(torch.isfinite(found[own]).all()):
            raise NonFinite(f"tensor '{name}.{own}' has NaN or Inf", where=model.label, right="a model that works")
        read.update(found[own].numpy().tobytes())
    return {own: tensor.to(device) for own, tensor in found.items()}


def _key(name: str, read: Mapping[int, Any], settings: AnchorSettings, config: Any) -> str:
    """Return a digest of all that a trained layer follows from, last bits included; `read` ends with its parameters."""
    import transformers

    libraries = (torch.__version__, transformers.__version__, torch.get_num_threads())
    parameters = [(number, digest.hexdigest()) for number, digest in sorted(read.items())]
    whole = [name, asdict(settings), libraries, config, parameters]
    return blake3(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _train(
    name: str,
    layer: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    width: int,
    held: Mapping[int, dict[str, Tensor]],
    settings: AnchorSettings,
) -> _Layer:
    base, start = held[BASE], held.get(MERGED, held[BASE])
    shape = (settings.anchors, settings.tokens, width)
    targets, cosines = [], []
    for number in sorted(number for number in held if number >= 0):
        begin = start_of_anchors(held[number], shape, settings.start, settings.seed).to(settings.device)
        found = construct_anchors(layer, base, held[number], begin, steps=settings.steps)
        if found.cosines:
            targets.append((held[number], found.inputs))
            cosines.append((found.cosines[0], max(found.cosines)))
    if not targets:  # no expert has moved anything
        return _Layer(start, LayerReport(name, (), (0.0, 0.0)))
    trained = adapt(
        layer,
        start,
        targets,
        base=base if MERGED in held else None,
        epochs=settings.epochs,
        learning_rate=settings.rate(MERGED in held),
        batch=settings.batch,
        loss=settings.loss,
        seed=settings.seed,
    )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in trained.parameters.values()):
        raise NonFinite(f"the training of {name!r} gave NaN or Inf", right="a smaller learning rate")
    return _Layer(trained.parameters, LayerReport(name, cosines, (trained.losses[0], trained.losses[-1])))


def _plan(
    models: Mapping[int, Model],
    first: Model,
    learned: Mapping[str, Tensor],
    settings: AnchorSettings,
    read: Mapping[str, str],
    options: Mapping[str, Any],
) -> Plan:
    base, number = models[BASE], MERGED if MERGED in models else BASE
    tasks = []
    for name, source in first.tensors.items():
        own = learned.get(name)
        given = Input(number, source, name) if own is None else Input(_LEARNED, MemoryTensor(own), name)
        dtype = natural_dtype(source, first.config) if source.dtype.is_float else source.dtype
        tasks.append(Task(name, Layout(source.shape), dtype, (given,)))
    asked = {
        "base": base.label,
        "experts": [model.label for n, model in sorted(models.items()) if n >= 0],
        **({"merged": first.label} if MERGED in models else {}),
        "settings": asdict(settings),
        "read": dict(read),
    }
    digest = blake3()
    for name, tensor in sorted(learned.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    sidecars, refused = sidecars_of(first)
    warnings = [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    config = None if first.config is None else merged_config(first.config, dtype=None, tied=None, vocab_size=None)
    return plan_copies(
        Asked({"fda": asked}, "", "**functional dual anchors** (arXiv 2510.21223)"),
        models,
        tasks,
        config=config,
        sidecars=sidecars,
        roles={n: "expert whose layers the anchors are of" if n >= 0 else "merged model" for n in models if n != BASE},
        warnings=[*warnings, *(f"{model.label}: {note}" for model in models.values() for note in model.notes)],
        digest=digest.hexdigest(),
        profile=f"torch:{torch.__version__}",
        **options,
    )
