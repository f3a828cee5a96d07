"""`cuvee verify`: is a merged model still what was published?"""

from __future__ import annotations

from pathlib import Path

from cuvee.cli import app
from cuvee.cli.amounts import in_bytes, in_seconds, parse_share, plural
from cuvee.cli.options import AsJson, Load, Sample, Threads
from cuvee.cli.planning import said_meanwhile
from cuvee.cli.progress import Bar
from cuvee.cli.screen import print_json, rows, screen, show, styled

__all__ = ["verify"]


def verify(
    folder: str, /, *, sample: Sample = None, load: Load = False, threads: Threads = None, json: AsJson = False
) -> None:
    """Check every tensor of a merged model against its manifest.

    Reads all weights again, and compares names, shapes, dtypes and digests with cuvee.json. Ends with 2 when something
    is not as it was published, and names the tensor and the leaf.

    Args:
        folder: a model that `cuvee merge` has published.
    """
    clock = app.clock
    share = None if sample is None else parse_share(sample, where="--sample")
    with clock.phase("import"), said_meanwhile("loading torch"):
        import cuvee.engine.verifying as verifying
        from cuvee.errors import raise_all
    with clock.phase("verify"), Bar() as bar:
        found = verifying.verify(
            Path(folder),
            sample=share,
            threads=threads,
            progress=lambda done, total: bar.show(done, total, "verifying"),
        )
    if load:
        with clock.phase("load"), said_meanwhile("building the model without weights"):
            from cuvee.engine.loading import check_loads

            raise_all([*found.problems, *check_loads(Path(folder))])
    raise_all(found.problems)
    if json:
        facts = {"folder": folder, "ok": True, "digest": found.digest, "tensors": found.tensors, "bytes": found.bytes}
        facts |= {"sample": share}
        print_json({**facts, "seconds": {**clock.phases, "total": clock.total}})
        return
    seconds = clock.phases["verify"]
    rate = found.bytes / max(seconds, 1e-9)
    read = f"{in_bytes(found.bytes)}, {plural(found.tensors, 'tensor')}, in {in_seconds(seconds)}: {in_bytes(rate)}/s"
    loads = ", and transformers finds all its tensors" if load else ""
    said = f"{folder} is what was published{loads}" + ("" if share is None else ", as far as was read")
    show(screen(), styled(said, "bold green"))
    show(screen(), rows((("read", read), ("digest", found.digest))))
