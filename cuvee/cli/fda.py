"""`cuvee fda`: train a model's layers on anchors of its fine-tunes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.cli import app
from cuvee.cli.merge import carry_out, print_report, report_object, warn
from cuvee.cli.options import (
    AllowNan,
    AnchorCount,
    AnchorLoss,
    AnchorPart,
    AnchorStart,
    AnchorSteps,
    AnchorTokens,
    AsJson,
    Device,
    Epochs,
    LearningRate,
    MergedModel,
    Offline,
    OutModel,
    Overwrite,
    Quiet,
    Seed,
    ShardSize,
    Threads,
    Token,
)
from cuvee.cli.planning import PlanOptions, load_engine
from cuvee.cli.screen import heading, indented, print_json, screen, show, styled, table

if TYPE_CHECKING:
    from cuvee.learning.dual_anchors import LayerReport

__all__ = ["fda"]


def fda(
    base: str,
    /,
    *experts: str,
    out: OutModel,
    merged: MergedModel = None,
    part: AnchorPart = "layer",
    anchors: AnchorCount = 64,
    anchor_tokens: AnchorTokens = 16,
    steps: AnchorSteps = 1200,
    start: AnchorStart = "weights",
    epochs: Epochs = 100,
    learning_rate: LearningRate = None,
    loss: AnchorLoss = "cosine",
    seed: Seed = None,
    overwrite: Overwrite = False,
    allow_nan: AllowNan = False,
    shard_size: ShardSize = "5GB",
    device: Device = "cpu",
    threads: Threads = None,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Merge by functional dual anchors: train each layer to answer learned inputs as every fine-tune does.

    Of each expert and layer, inputs are learned at which the gradient points along the task vector (arXiv 2510.21223), and
    on all of them the layer is trained. No data, but passes through every layer that are differentiated twice: minutes for
    small models, hours on a GPU for large ones. A run that was stopped goes on after the last whole layer when the same
    command is given again.

    Args:
        base: the model that the others were fine-tuned from; one that transformers loads.
        experts: fine-tunes of it.
    """
    from cuvee.checkpoints.publishing import check_target, give_up, learned_folder

    clock = app.clock
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    options = PlanOptions(shard_size=shard_size, threads=threads, offline=offline, token=token)
    load_engine(device, clock, quiet=quiet)
    from cuvee.learning import AnchorSettings, plan_anchors

    settings = AnchorSettings(
        part=part,
        anchors=anchors,
        tokens=anchor_tokens,
        steps=steps,
        start=start,
        epochs=epochs,
        learning_rate=learning_rate,
        loss=loss,
        seed=seed or 0,
        device=device,
    )
    layers: list[LayerReport] = []
    with clock.phase("learn"), _shown(layers, wanted=not quiet) as watch:
        planned = plan_anchors(
            base,
            experts,
            settings,
            merged=merged,
            offline=offline,
            token=token,
            learned=learned_folder(target),
            watch=watch,
            threads=threads,
            shard_size=options.shard_bytes,
        )
    report = carry_out(planned, target, overwrite=overwrite, allow_nan=allow_nan, with_bar=not quiet)
    report = replace(report, warnings=[*report.warnings, *give_up(learned_folder(target))])
    clock.phases |= {name: report.seconds[name] for name in ("merge", "publish")}
    if json:
        print_json({**report_object(planned, report, clock), "layers": [asdict(layer) for layer in layers]})
    elif quiet:
        warn(report.warnings)
    else:
        print_report(out, planned, report, clock)
        _print_layers(layers)


@contextmanager
def _shown(layers: list[LayerReport], *, wanted: bool) -> Iterator[Callable[[LayerReport, int, int], None]]:
    """Gather what becomes of each layer, and show in a terminal how many are done."""
    console = screen(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda layer, done, total: layers.append(layer)
        return
    with console.status("learning anchors", spinner="dots") as status:

        def watch(layer: LayerReport, done: int, total: int) -> None:
            layers.append(layer)
            status.update(f"learning anchors: layer {done} of {total}")

        yield watch


def _print_layers(layers: list[LayerReport]) -> None:
    made = table("layer", "cosine with the task vectors", "mismatch", fold=(0,))
    for layer in layers:
        cosines = ", ".join(f"{before:.2f} → {after:.2f}" for before, after in layer.cosines) or "none has moved"
        made.add_row(*map(styled, (layer.name, cosines, f"{layer.losses[0]:.3g} → {layer.losses[1]:.3g}")))
    show(screen(), "", heading("The layers, before and after"), indented(made))
