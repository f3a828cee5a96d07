"""`cuvee tokens`: give a model another model's tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

from cuvee.cli import app
from cuvee.cli.merge import carry_out, print_report, report_object, warn
from cuvee.cli.options import (
    AllowNan,
    AsJson,
    Atoms,
    ByteMatch,
    CosineSimilarity,
    Device,
    Magikarp,
    Memory,
    Offline,
    Overwrite,
    PrefixMatch,
    Quiet,
    Seed,
    ShardSize,
    SubwordMethod,
    Threads,
    Token,
    TokenBatch,
    TokenNoise,
    TokenScale,
    Way,
    WeightScheme,
)
from cuvee.cli.planning import PlanOptions, load_engine
from cuvee.cli.progress import Bar
from cuvee.cli.screen import print_json

__all__ = ["tokens"]


def tokens(
    model: str,
    donor: str,
    out: str,
    /,
    *,
    method: Way = "omp",
    k: Atoms = 64,
    weight_scheme: WeightScheme = "distance_proportional",
    cosine_similarity: CosineSimilarity = False,
    subword_method: SubwordMethod = "mean",
    prefix_match: PrefixMatch = "no",
    byte_match: ByteMatch = "no",
    magikarp: Magikarp = False,
    noise: TokenNoise = 0.0,
    scale: TokenScale = 1.0,
    batch: TokenBatch = 512,
    seed: Seed = None,
    overwrite: Overwrite = False,
    allow_nan: AllowNan = False,
    shard_size: ShardSize = "5GB",
    device: Device = "cpu",
    threads: Threads = None,
    memory: Memory = None,
    offline: Offline = False,
    token: Token = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Give a model another model's tokenizer, and publish it.

    A token that both know keeps the model's row. Any other is written, in the donor's space, as a combination of tokens
    that both know, and the same combination of the model's rows is its row. Embedding and head are made apart.

    Args:
        model: the model that is changed.
        donor: the model whose tokenizer it gets.
        out: folder to publish.
    """
    from cuvee.checkpoints.publishing import check_target
    from cuvee.tokenizers.transplant import Approximation

    clock = app.clock
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    options = PlanOptions(shard_size=shard_size, threads=threads, memory=memory, offline=offline, token=token)
    load_engine(device, clock, quiet=quiet)
    from cuvee.engine.transplanting import plan_transplant

    how = Approximation(
        method,
        k,
        weight_scheme,
        cosine_similarity,
        subword_method,
        batch,
        prefix_match,
        byte_match,
        magikarp,
        noise,
        scale,
        seed or 0,
    )
    with clock.phase("plan"), Bar(wanted=not quiet, spoken=lambda count: f"{count:,.0f} tokens") as bar:
        planned = plan_transplant(
            model,
            donor,
            how,
            memory=options.memory_bytes,
            threads=threads,
            shard_size=options.shard_bytes,
            device=device,
            offline=offline,
            token=token,
            watch=lambda name, done, total: bar.show(done, total, f"new tokens of {name}"),
        )
    report = carry_out(planned, target, overwrite=overwrite, allow_nan=allow_nan, with_bar=not quiet)
    clock.phases |= {name: report.seconds[name] for name in ("merge", "publish")}
    if json:
        print_json(report_object(planned, report, clock))
    elif quiet:
        warn(report.warnings)
    else:
        print_report(out, planned, report, clock)
