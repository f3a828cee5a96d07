"""`cuvee gc`: what have killed runs left, and away with it."""

from __future__ import annotations

from pathlib import Path

from cuvee.checkpoints.garbage import collect, find_leftovers
from cuvee.cli.amounts import in_bytes, in_seconds, parse_seconds, plural
from cuvee.cli.options import AsJson, OlderThan, Remove
from cuvee.cli.screen import print_json, prose, safe, screen, show, styled

__all__ = ["gc"]


def gc(folder: str, /, *, remove: Remove = False, older_than: OlderThan = "1d", json: AsJson = False) -> None:
    """List what killed runs have left, and remove it when told to.

    A run that was killed leaves a hidden folder beside its target, for the same command to go on with. Runs that are on
    their way are left alone, and so is what has changed lately.

    Args:
        folder: where models were to be published, or the model itself.
    """
    found = find_leftovers(Path(folder), older_than_s=parse_seconds(older_than, where="--older-than"))
    removed = [one for one in found if remove and collect(one)]
    if json:
        things = [
            {
                "path": str(one.path),
                "bytes": one.size,
                "age_s": one.age_s,
                "kept": one.kept,
                "removed": one in removed,
            }
            for one in found
        ]
        print_json({"folder": folder, "leftovers": things, "bytes_freed": sum(one.size for one in removed)})
        return
    may_go = [one for one in found if not one.kept]
    size = in_bytes(sum(one.size for one in may_go))
    if not found:
        show(screen(), styled(f"nothing was left in {folder}"))
    elif remove:
        show(
            screen(),
            styled(f"removed {plural(len(removed), 'thing')}, {in_bytes(sum(r.size for r in removed))}", "bold"),
        )
    else:
        show(screen(), styled(f"{plural(len(may_go), 'thing')} to remove, {size}; --remove does it", "bold"))
    for one in found:
        fate = "removed" if one in removed else f"kept, {one.kept}" if one.kept else "kept" if remove else "would go"
        said = f"{safe(one.path)}: {in_bytes(one.size)}, {in_seconds(max(0.0, one.age_s))} old, {fate}"
        show(screen(), prose(said))
