"""`cuvee fill`: put a model in its place in a larger one."""

from __future__ import annotations

import os
from pathlib import Path

from cuvee.cli import app
from cuvee.cli.merge import carry_out, print_report, report_object, warn
from cuvee.cli.options import AllowNan, AsJson, Memory, Offline, Overwrite, Quiet, ShardSize, Threads, Token
from cuvee.cli.planning import PlanOptions, load_engine
from cuvee.cli.screen import print_json

__all__ = ["fill"]


def fill(
    base: str,
    part: str,
    out: str,
    /,
    *,
    overwrite: Overwrite = False,
    allow_nan: AllowNan = False,
    shard_size: ShardSize = "5GB",
    threads: Threads = None,
    memory: Memory = None,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Put a model in its place in a larger one, and publish it.

    All that the part does not have comes from the base: a merged language model becomes a vision-language model again.

    Args:
        base: the larger model, whose config and files the output takes.
        part: the model that takes its place in it.
        out: folder to publish.
    """
    from cuvee.checkpoints.publishing import check_target

    clock = app.clock
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    options = PlanOptions(shard_size=shard_size, threads=threads, memory=memory, offline=offline, token=token)
    load_engine("cpu", clock, quiet=quiet)
    from cuvee.engine.filling import plan_fill

    with clock.phase("plan"):
        planned = plan_fill(
            base,
            part,
            memory=options.memory_bytes,
            threads=threads,
            shard_size=options.shard_bytes,
            offline=offline,
            token=token,
        )
    report = carry_out(planned, target, overwrite=overwrite, allow_nan=allow_nan, with_bar=not quiet)
    clock.phases |= {name: report.seconds[name] for name in ("merge", "publish")}
    if json:
        print_json(report_object(planned, report, clock))
    elif quiet:
        warn(report.warnings)
    else:
        print_report(out, planned, report, clock)
