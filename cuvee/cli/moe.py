"""`cuvee moe`: make a mixture of experts of dense models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.cli import app
from cuvee.cli.merge import carry_out, print_report, report_object, warn
from cuvee.cli.options import AllowNan, AsJson, BatchSize, GateDtype, Overwrite, Quiet, SkipRouting
from cuvee.cli.planning import PlanOptions, load_engine, noted, said_meanwhile
from cuvee.cli.screen import heading, indented, print_json, prose, screen, show, styled, table

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.moe import MoeConfig
    from cuvee.moe.building import Mixture
    from cuvee.moe.forward import Pass
    from cuvee.moe.routing import Routing

__all__ = ["moe"]


def moe(
    config: str,
    out: str,
    /,
    *,
    gate_dtype: GateDtype = "float32",
    batch: BatchSize = 32,
    skip_routing: SkipRouting = False,
    overwrite: Overwrite = False,
    allow_nan: AllowNan = False,
    quiet: Quiet = False,
    json: AsJson = False,
    options: PlanOptions = PlanOptions(),
) -> None:
    """Make a mixture of experts of dense models, and publish it.

    Every model gives its MLPs as one expert of each layer; the base gives all else. The router's rows are made of prompts
    (gate_mode hidden, hidden_avg, router_input, cheap_embed) or drawn (random, uniform_random).

    Args:
        config: YAML file; mergekit-moe's work too.
        out: folder to publish.
    """
    from cuvee.checkpoints.publishing import check_target

    clock = app.clock
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    asked = _read(config, options)
    load_engine(options.device, clock, quiet=quiet)
    from cuvee.moe.forward import Pass

    how = Pass(options.device, gate_dtype, batch)
    mixture = _plan(asked, options, how, quiet=quiet)
    report = carry_out(mixture.plan, target, overwrite=overwrite, allow_nan=allow_nan, with_bar=not quiet)
    clock.phases |= {name: report.seconds[name] for name in ("merge", "publish")}
    routing = None
    if mixture.prompts and not skip_routing:
        routing, warnings = _measure(mixture, target, how, quiet=quiet)
        report = replace(report, warnings=(*report.warnings, *warnings))
    if json:
        said = {"layout": mixture.layout.title, "fused": mixture.fused, "routing": routing and routing.as_object()}
        print_json({**report_object(mixture.plan, report, clock), **said})
    elif quiet:
        warn(report.warnings)
    else:
        print_report(out, mixture.plan, report, clock)
        _print_mixture(screen(), asked, mixture, routing)


def _read(path: str, options: PlanOptions) -> MoeConfig:
    """Read a config and what the command line changes of it, which is noted at the end of its text."""
    from cuvee.moe.config_form import load_moe_config

    config = load_moe_config(path)
    if options.seed is not None:
        config = replace(config, seed=options.seed, text=noted(config.text, f"--seed {options.seed}"))
    if options.compat is not None:
        config = replace(config, compat=options.compat, text=noted(config.text, f"--compat {options.compat}"))
    return config


def _plan(config: MoeConfig, options: PlanOptions, how: Pass, *, quiet: bool) -> Mixture:
    from cuvee.moe.building import plan_moe

    with app.clock.phase("plan"), _layers_shown("making the gates", wanted=not quiet) as watch:
        return plan_moe(
            config,
            how=how,
            memory=options.memory_bytes,
            threads=options.threads,
            shard_size=options.shard_bytes,
            offline=options.offline,
            token=options.token,
            watch=watch,
        )


def _measure(mixture: Mixture, target: Path, how: Pass, *, quiet: bool) -> tuple[Routing | None, Sequence[str]]:
    """Return where tokens go, and warnings; the model is published, so that an error here is but a warning."""
    from cuvee.errors import CuveeError
    from cuvee.moe.routing import measure_routing

    with app.clock.phase("routing"), _layers_shown("measuring the routing", wanted=not quiet) as watch:
        try:
            routing = measure_routing(mixture, target, how, watch)
        except CuveeError as error:
            return None, [f"the routing was not measured: {error.found}"]
        return routing, routing.warnings


@contextmanager
def _layers_shown(what: str, *, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Show in a terminal how many layers are done."""
    console = screen(stderr=True)
    if not (wanted and console.is_terminal):
        with said_meanwhile(what, wanted=wanted):
            yield lambda done, total: None
        return
    with console.status(what, spinner="dots") as status:
        yield lambda done, total: status.update(f"{what}: layer {done} of {total}")


def _print_mixture(console: Console, config: MoeConfig, mixture: Mixture, routing: Routing | None) -> None:
    form = "fused" if mixture.fused else "separate"
    said = f"{mixture.layout.title}, experts {form}; {len(config.experts)} experts, {config.experts_per_token} a token"
    said += "; 1 shared expert" if config.shared_experts else ""
    show(console, "", heading("The mixture"), prose(said))
    if routing is None:
        return
    made = table("expert", "model", "own prompts", "all prompts", numbers=(0, 2, 3), fold=(1,))
    for number, own in enumerate(routing.own):
        label = mixture.plan.models[number].label
        made.add_row(styled(number), styled(label), _percent(own), _percent(routing.usage[number]))
    chance = (
        f"own prompts: tokens that reach the expert, by chance {100 * routing.chance:.0f} %; all: share of its work"
    )
    show(console, "", heading("Routing"), indented(made), prose(chance, "dim"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
