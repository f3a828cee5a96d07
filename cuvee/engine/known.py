"""What is known of inputs beforehand: a model that cuvee has published says the digest of each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cuvee.checkpoints import fs
from cuvee.checkpoints.sources import StoredTensor
from cuvee.engine.manifest import MANIFEST_NAME, is_sealed, read_manifest
from cuvee.engine.plan import Plan
from cuvee.engine.recording import TaskRecord
from cuvee.errors import CheckpointError, printable

__all__ = ["Known"]


@dataclass(frozen=True)
class Known:
    """The digests that the inputs' own manifests say.

    Attributes:
        digests: by file and tensor.
        manifests: the manifest that says so, by file.
    """

    digests: Mapping[tuple[Path, str], str]
    manifests: Mapping[Path, Path]

    @classmethod
    def of(cls, plan: Plan) -> Known:
        """Read the manifests that lie beside the plan's models; one that is damaged or newer says nothing."""
        digests: dict[tuple[Path, str], str] = {}
        manifests: dict[Path, Path] = {}
        for model in plan.models.values():
            if model.folder is None or not fs.is_file(model.folder / MANIFEST_NAME):
                continue
            said = _said(model.folder)
            for file in model.files:
                if file.path.parent == model.folder:
                    manifests[file.path] = model.folder / MANIFEST_NAME
                    digests |= {
                        (file.path, name): digest for (of, name), digest in said.items() if of == file.path.name
                    }
        return cls(digests, manifests)

    def check(self, record: TaskRecord) -> None:
        """Refuse a tensor that was read whole and is not what was published.

        Raises:
            CheckpointError: naming it, its file and the manifest.
        """
        for one, digest in zip(record.task.all_inputs, record.inputs, strict=True):
            if not isinstance(one.source, StoredTensor):
                continue
            path, name = one.source.file.path, one.source.name
            if self.digests.get((path, name), digest.hexdigest()) != digest.hexdigest():
                raise CheckpointError(
                    f"tensor {printable(name)!r} does not have the values that were published, by {self.manifests[path]}",
                    where=str(path),
                    right=f"fetch the file again; or, if it was changed on purpose, remove {self.manifests[path]}",
                )


def _said(folder: Path) -> dict[tuple[str, str], str]:
    """Return the digest of each tensor, by file and name."""
    try:
        manifest = read_manifest(folder)
        if not is_sealed(manifest):
            return {}
        tensors = manifest["output"]["tensors"].items()
        return {(str(entry["file"]), str(name)): str(entry["blake3"]) for name, entry in tensors}
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return {}
