"""From a config and its dense models to a plan of copies, and to a published mixture of experts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.publishing import check_target
from cuvee.checkpoints.sidecars import sidecars_of
from cuvee.checkpoints.sources import MemoryTensor, Model, natural_dtype
from cuvee.engine.copying import plan_copies
from cuvee.engine.kinship import kinship
from cuvee.engine.matching import BASE
from cuvee.engine.models import open_models
from cuvee.engine.plan import DEFAULT_SHARD_SIZE, Asked, Plan
from cuvee.engine.run import Report, run
from cuvee.engine.tasks import Input, Task
from cuvee.errors import CuveeError, IncompatibleModels, raise_all
from cuvee.moe.config import CHEAP, RANDOM, ExpertEntry, MoeConfig, check_config, describe_config
from cuvee.moe.config_form import load_moe_config
from cuvee.moe.dense import MLP, Dense, expert_misfits, read_dense, size_misfits
from cuvee.moe.forward import Pass
from cuvee.moe.gates import gate_warnings, make_gates
from cuvee.moe.layouts import LAYOUTS, MoeLayout, misfits, named_layouts
from cuvee.moe.prompts import prompt_lists, tokenize_prompts, words_of
from cuvee.moe.target_config import config_warnings, moe_json
from cuvee.recipes.findings import Findings
from cuvee.tensors.digests import TensorDigest
from cuvee.tensors.draws import draw_key, normal
from cuvee.tensors.dtypes import DTYPES, DType, parse_dtype
from cuvee.tensors.layout import Layout
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mixture", "build_moe", "plan_moe"]

COMPUTED = -2
"""The number of what no model holds: gates, and biases of zero."""


@dataclass(frozen=True)
class Mixture:
    """A planned mixture of experts.

    Attributes:
        plan: what `cuvee.run` carries out.
        layout: how it is stored; `fused` says in which form.
        base: the dense base.
        prompts: token ids of the prompts that made the gates, by expert and sign; empty where they were drawn.
    """

    plan: Plan
    layout: MoeLayout
    fused: bool
    base: Dense
    prompts: Mapping[tuple[int, bool], list[list[int]]]
    padding: int


def build_moe(
    config: MoeConfig | str | PathLike[str], out: str | PathLike[str], *, overwrite: bool = False, **options: Any
) -> Report:
    """Make a mixture of experts of dense models and publish it.

    Args:
        config: a `MoeConfig`, or the path of a YAML file.
        out: the folder to publish.
        overwrite: replace a folder that is there.
        options: those of `plan_moe` and of `run`.
    """
    of_run = {name: options.pop(name) for name in ("allow_nan", "progress") if name in options}
    check_target(Path(os.path.abspath(out)), overwrite=overwrite)
    if not isinstance(config, MoeConfig):
        config = load_moe_config(config)
    return run(plan_moe(config, **options).plan, out, overwrite=overwrite, **of_run)


def plan_moe(
    config: MoeConfig,
    *,
    how: Pass = Pass(),
    memory: int | None = None,
    threads: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    offline: bool = False,
    token: str | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Mixture:
    """Plan a mixture: open the models' headers, choose the layout, make the gates, lay out the output.

    Args:
        how: how a forward pass through the base is done, where the gates need one. It holds one layer in memory, which
            `memory` does not count.
        memory, threads, shard_size, offline, token: as for `cuvee.plan`.
        watch: told how many layers of the forward pass are done, of all.

    Raises:
        Problems: all that is wrong with config and models, said together; or the one error that is.
    """
    findings = Findings(config.places)
    if not config.text:
        check_config(config, findings)
        raise_all(findings.errors)
    wanted = {BASE: config.base_model, **{n: one.source_model for n, one in enumerate(config.entries)}}
    models = open_models(wanted, offline=offline, token=token)
    base, experts = _read(config, models)
    layout = _choose(config, base, experts)
    raise_all(size_misfits(base))
    fused = layout.is_fused if config.expert_layout is None else config.expert_layout == "fused"
    lists = {} if config.gate_mode in RANDOM else prompt_lists(config)
    prompts, padding = tokenize_prompts(lists, base.model, base.vocabulary) if lists else ({}, 0)
    gates = make_gates(config, base, prompts, padding, how, watch)
    stored = natural_dtype(base.model.tensors["model.layers.0.mlp.up_proj.weight"], base.model.config)
    dtype = parse_dtype(config.dtype) if config.dtype else stored
    tasks = list(_tasks(config, layout, fused, base, experts, gates, dtype))
    sidecars, refused = sidecars_of(base.model)
    warnings = [*config.notes, *findings.warnings, *config_warnings(config, layout, base)]
    warnings += [] if config.gate_mode in RANDOM else gate_warnings(gates, len(config.experts))
    warnings += _vocabulary_warnings(config, base, experts) + _kinship(base, experts, models)
    warnings += [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    warnings += [f"{model.label}: {note}" for model in models.values() for note in model.notes]
    plan = plan_copies(
        Asked(describe_config(config), config.text, f"**mixture of experts** ({layout.title} layout)"),
        models,
        tasks,
        config=moe_json(config, layout, base, dtype),
        sidecars=sidecars,
        roles={n: _role(config, n) for n in range(len(config.entries))},
        dropped=base.dropped,
        warnings=warnings,
        digest=_digest(gates),
        profile=_profile(config),
        memory=memory,
        threads=threads,
        shard_size=shard_size,
    )
    return Mixture(plan, layout, fused, base, prompts, padding)


def _role(config: MoeConfig, number: int) -> str:
    return f"expert {number}" if number < len(config.experts) else "shared expert"


def _read(config: MoeConfig, models: Mapping[int, Model]) -> tuple[Dense, dict[int, Dense]]:
    """Read all dense models and hold the experts against the base.

    Raises:
        Problems: of all that do not fit.
    """
    base = read_dense(models[BASE])
    experts: dict[int, Dense] = {}
    errors: list[CuveeError] = []
    for number in range(len(config.entries)):
        try:
            experts[number] = read_dense(models[number])
            errors += expert_misfits(base, experts[number], _role(config, number))
        except CuveeError as error:
            errors.append(error)
    raise_all(list({str(error): error for error in errors}.values()))
    return base, experts


def _choose(config: MoeConfig, base: Dense, experts: Mapping[int, Dense]) -> MoeLayout:
    """Return the first layout that fits, Mixtral before all.

    Raises:
        IncompatibleModels: none does; with the reasons of each candidate.
    """
    candidates = LAYOUTS if config.architecture is None else named_layouts(str(config.architecture))
    others = {f"{_role(config, number)} ({dense.model.label})": dense for number, dense in experts.items()}
    reasons = {layout: misfits(layout, config, base, others) for layout in candidates}
    fitting = [layout for layout in candidates if not reasons[layout]]
    if fitting:
        return fitting[0]
    said = "\n".join(
        f"  {layout.title}: {'; '.join(why)}" for layout, why in ((one, reasons[one]) for one in candidates)
    )
    raise IncompatibleModels(
        f"no layout of a mixture of experts fits these models\n{said}",
        where=base.model.label,
        right=_way_out(config, base, reasons),
    )


def _way_out(config: MoeConfig, base: Dense, reasons: Mapping[MoeLayout, list[str]]) -> str:
    """Return what would make the layout fit that the base's family can become and that lacks least."""
    near = [layout for layout in reasons if base.family in layout.families]
    if not near:
        families = sorted({family for layout in reasons for family in layout.families})
        return f"models of another family: {', '.join(families)}"
    layout = min(near, key=lambda layout: len(reasons[layout]))
    if len(config.shared_experts) not in layout.shared_counts:
        if 0 in layout.shared_counts:
            return f"for {layout.title}: no shared_experts"
        prompts = "" if config.gate_mode in RANDOM else ' positive_prompts: ["…"],'
        return (
            f"for {layout.title}: shared_experts: [{{source_model: {base.model.label},{prompts} residual_scale: 0.1}}]"
        )
    return f"for {layout.title}: what it asks for above"


def _tasks(
    config: MoeConfig,
    layout: MoeLayout,
    fused: bool,
    base: Dense,
    experts: Mapping[int, Dense],
    gates: Tensor,
    dtype: DType,
) -> Iterator[Task]:
    """Yield the task of each output tensor."""
    routed = range(len(config.experts))
    for name in sorted(base.outside):
        yield _copy(name, dtype if config.dtype else None, BASE, base, name)
    for number in range(base.layers):
        prefix = f"model.layers.{number}."
        for name in sorted(base.around[number]):
            yield _copy(prefix + name, dtype if config.dtype else None, BASE, base, prefix + name)
        for name in sorted(layout.biases - base.around[number]):
            zeros = torch.zeros(base.rows(prefix + name.replace(".bias", ".weight")))
            yield _task(prefix + name, dtype, tuple(zeros.shape), [Input(COMPUTED, MemoryTensor(zeros))])
        parts = {
            (expert, part): _mlp(config.entries[expert], config.seed, expert, experts[expert], prefix, part)
            for expert in experts
            for part in MLP
        }
        if fused and layout.fused:
            gate_up = [parts[expert, part] for expert in routed for part in MLP[:2]]
            down = [parts[expert, MLP[2]] for expert in routed]
            count, hidden, inner = len(routed), base.hidden, base.inner
            yield _task(prefix + layout.fused[0], dtype, (count, 2 * inner, hidden), gate_up)
            yield _task(prefix + layout.fused[1], dtype, (count, hidden, inner), down)
        else:
            for expert in routed:
                for part, name in zip(MLP, layout.experts, strict=True):
                    one = parts[expert, part]
                    yield _task(prefix + name.format(e=expert), dtype, one.source.shape, [one])
        for expert in range(len(routed), len(config.entries)):
            for part in MLP:
                one = parts[expert, part]
                yield _task(f"{prefix}{layout.shared}{part}.weight", dtype, one.source.shape, [one])
        yield _gate(prefix + layout.router[fused], dtype, gates[number, : len(routed)])
        if layout.shared_gate:
            yield _gate(prefix + layout.shared_gate, dtype, gates[number, len(routed) :])


def _copy(name: str, dtype: DType | None, number: int, dense: Dense, stored: str) -> Task:
    source = dense.model.tensors[stored]
    kept = natural_dtype(source, dense.model.config)
    return _task(name, dtype or kept, source.shape, [Input(number, source, stored)])


def _task(name: str, dtype: DType, shape: tuple[int, ...], inputs: list[Input]) -> Task:
    return Task(name, Layout(shape), dtype, tuple(inputs))


def _gate(name: str, dtype: DType, rows: Tensor) -> Task:
    return _task(name, dtype, tuple(rows.shape), [Input(COMPUTED, MemoryTensor(rows.contiguous()))])


def _mlp(entry: ExpertEntry, seed: int, number: int, dense: Dense, prefix: str, part: str) -> Input:
    """Return one projection of an expert, with its noise and its residual scale."""
    name = f"{prefix}mlp.{part}.weight"
    scale = float(entry.residual_scale) if part == MLP[2] else 1.0
    noise = float(entry.noise_scale)
    changed = scale != 1.0 or noise != 0.0
    change = partial(_changed, key=draw_key(seed, name, number), noise=noise, scale=scale) if changed else None
    return Input(number, dense.model.tensors[name], name, change)


def _changed(values: Tensor, start: int, *, key: tuple[int, int], noise: float, scale: float) -> Tensor:
    """Return (values + noise · N(0, 1)) · scale."""
    if noise:
        values = values + normal(key, start, start + len(values)).mul_(noise)
    return values * scale


def _vocabulary_warnings(config: MoeConfig, base: Dense, experts: Mapping[int, Dense]) -> list[str]:
    """Return which experts learned on other tokens: the mixture has the base's."""
    words = words_of(base.model)
    warnings = []
    for number, dense in experts.items():
        found = ""
        if dense.vocabulary != base.vocabulary:
            found = f"has {dense.vocabulary} token embeddings, and the base {base.vocabulary}"
        elif dense.model is not base.model and words:
            other = sum(words.get(word) != token for word, token in words_of(dense.model).items())
            found = f"has {other} tokens that the base's tokenizer has not, or under another number" if other else ""
        if found:
            said = f"{_role(config, number)} {dense.model.label!r} {found}: its MLPs expect other tokens than they will get"
            warnings.append(said)
    return warnings


def _kinship(base: Dense, experts: Mapping[int, Dense], models: Mapping[int, Model]) -> list[str]:
    """Return which experts do not descend from the base: MLPs that grew in another model's residual stream."""
    name = f"model.layers.{base.layers // 2}.mlp.{{}}.weight"
    tasks = []
    for part in map(name.format, MLP):
        inputs = tuple(Input(number, dense.model.tensors[part]) for number, dense in experts.items())
        shape = base.model.tensors[part].shape
        tasks.append(Task(part, Layout(shape), DTYPES["F32"], inputs, Input(BASE, base.model.tensors[part])))
    return kinship(tasks, {number: model.label for number, model in models.items()})


def _profile(config: MoeConfig) -> str:
    """Matrix products and logarithms follow the machine; sums of embeddings and uniform draws do not."""
    is_portable = config.gate_mode in (*CHEAP, "uniform_random") and not any(one.noise_scale for one in config.entries)
    return "portable-1" if is_portable else f"torch:{torch.__version__}"


def _digest(gates: Tensor) -> str:
    digest = TensorDigest(DTYPES["F32"], Layout(tuple(gates.shape)))
    digest.add(0, gates.reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
