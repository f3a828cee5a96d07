"""Models of the Hugging Face hub: the needed files of one commit, fetched into the hub's own cache.

`huggingface_hub` does the talking, and is imported here only. The revision is resolved to a commit first, and every
file is of that commit. Nothing that is fetched is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.checkpoints.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, choose, listing, read_index
from cuvee.errors import CheckpointError, printable

__all__ = ["Snapshot", "fetch", "parse_id"]

MAX_SIDECAR_BYTES = 64 << 20
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./+-]+))?")
_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot",
          ".npz", ".tflite", ".pdf", ".mp4", ".zip", ".tar", ".gz")  # fmt: skip
_SMALL_TEXT = (".json", ".txt", ".jinja", ".py", ".model")
_DOWNLOADS_AT_ONCE = 4


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit.

    Attributes:
        folder: where they lie.
        commit: its full hash.
        notes: what the reader should know.
    """

    folder: Path
    commit: str
    notes: tuple[str, ...] = ()


def parse_id(text: str) -> tuple[str, str | None] | None:
    """Return `org/name` and the revision of a hub id, None where `text` is none."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:
        return None
    return match["id"], match["revision"]


def fetch(
    model: str, revision: str | None = None, *, adapter: bool = False, offline: bool = False, token: str | None = None
) -> Snapshot:
    """Fetch the files that a merge needs: weights (safetensors where there are any), config, tokenizer and sidecars.

    Args:
        model: `org/name`.
        revision: branch, tag or commit; the main branch when None.
        adapter: fetch an adapter's files instead.
        offline: look into the local cache only; also on when HF_HUB_OFFLINE=1.
        token: of the user; else the one that `hf auth login` or HF_TOKEN left.

    Raises:
        CheckpointError: it does not exist, is gated, is not in the cache, or the hub cannot be reached.
    """
    offline = offline or _is_offline()
    client = _Client(model, revision or "main", token, offline=offline)
    if offline:
        return client.cached()
    try:
        with client.said_in_words():
            commit, sizes = client.list_files()
    except _Unreachable as error:
        return client.cached_instead(error)
    wanted = [name for name in sizes if _is_safe(name)]
    first = _small_file(wanted, adapter=adapter)
    if first is None:
        raise CheckpointError(
            f"{model} holds no {'adapter' if adapter else 'model'} on the hub: {listing(sizes) or 'it is empty'}",
            where=client.where,
            right=f"a model with {ADAPTER_CONFIG}" if adapter else "a model with *.safetensors or pytorch_model.bin",
        )
    with client.said_in_words():
        # by its branch, so that the cache learns which commit the branch is: --offline needs it
        folder, actual = client.download(first, client.revision)
        if actual != commit:
            commit, sizes = client.list_files(actual)
    names = _adapter_files(sizes) if adapter else _model_files(sizes, client, commit)
    with client.said_in_words():
        client.download_all(names, commit)
    return Snapshot(folder, commit)


# ---- which files


def _is_safe(name: str) -> bool:
    return all(part not in ("", ".", "..") for part in name.split("/")) and not re.search(r"[\\\0]", name)


def _small_file(names: Iterable[str], *, adapter: bool) -> str | None:
    """Return a file that is there for certain, and small where possible."""
    names = list(names)
    if adapter:
        return ADAPTER_CONFIG if ADAPTER_CONFIG in names else None
    for name in ("config.json", "model.safetensors.index.json", ADAPTER_CONFIG):
        if name in names:
            return name
    return next((name for name in names if "/" not in name and name.endswith((".safetensors", ".bin"))), None)


def _adapter_files(sizes: Mapping[str, int | None]) -> list[str]:
    weights = [name for name in ADAPTER_WEIGHTS if name in sizes][:1]
    return [name for name in (ADAPTER_CONFIG, *weights) if name in sizes]


def _model_files(sizes: Mapping[str, int | None], client: _Client, commit: str) -> list[str]:
    at_root = sorted(name for name in sizes if "/" not in name and _is_safe(name))
    chosen = choose(at_root, client.where)
    files: list[str] = []
    if chosen is not None and chosen.index_name:
        with client.said_in_words():
            folder, _ = client.download(chosen.index_name, commit)
        index = read_index(folder, chosen.index_name)
        missing = next((file for file in index.values() if file not in sizes), None)
        if missing is not None:
            raise CheckpointError(
                f"{chosen.index_name} names {printable(missing)[:200]!r}, which the hub does not have",
                where=client.where,
                right="another revision of the model: org/name@REVISION",
            )
        files = [chosen.index_name, *sorted(set(index.values()))]
    elif chosen is not None:
        files = list(chosen.files)
    return [*files, *(name for name, size in sizes.items() if _is_safe(name) and _is_sidecar(name, size))]


def _is_sidecar(name: str, size: int | None) -> bool:
    """True for small files that are no weights: tokenizer, templates, generation settings, modules of embedders."""
    if name.startswith(".") or "/." in name or (size or 0) > MAX_SIDECAR_BYTES:
        return False
    if re.match(r"\d+_[^/]+/", name):
        return True
    if name.endswith((*_LARGE, ".index.json")):
        return False
    return "/" not in name or name.endswith(_SMALL_TEXT)


# ---- talking to the hub


def _is_offline() -> bool:
    said = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in said)


def _import() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            "models of the hub need the package huggingface_hub, which is not installed", right="pip install cuvee[hub]"
        ) from None
    return huggingface_hub


class _Unreachable(CheckpointError):
    """The hub does not answer."""


class _Client:
    """One model of the hub, asked through huggingface_hub.

    Attributes:
        revision: branch, tag or commit, as the user said it.
        where: what errors name.
    """

    def __init__(self, model: str, revision: str, token: str | None, *, offline: bool) -> None:
        self._library = _import()
        self._is_offline = offline
        self._model = model
        self._token = token
        self._endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.revision = revision
        self.where = f"{self._endpoint}/{model}, revision {revision}"

    def _cache(self) -> str | None:
        home = os.environ.get("HF_HOME")
        return os.environ.get("HF_HUB_CACHE") or (os.path.join(home, "hub") if home else None)

    def list_files(self, revision: str | None = None) -> tuple[str, dict[str, int | None]]:
        """Return the commit of a revision, and its files with their sizes."""
        api = self._library.HfApi(endpoint=self._endpoint, token=self._token)
        info = api.model_info(self._model, revision=revision or self.revision, files_metadata=True, timeout=30)
        return str(info.sha), {file.rfilename: file.size for file in info.siblings or ()}

    def download(self, name: str, revision: str) -> tuple[Path, str]:
        """Fetch one file; return the folder of its snapshot and the commit."""
        path = Path(
            self._library.hf_hub_download(
                self._model,
                name,
                revision=revision,
                endpoint=self._endpoint,
                token=self._token,
                cache_dir=self._cache(),
            )
        )
        folder = path.parents[name.count("/")]
        return folder, folder.name

    def download_all(self, names: Iterable[str], commit: str) -> None:
        """Fetch files, a few at a time."""
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            for _ in pool.map(lambda name: self.download(name, commit), dict.fromkeys(names)):
                pass

    def cached(self) -> Snapshot:
        """Return what the cache has, without any network."""
        with self.said_in_words():
            folder = self._library.snapshot_download(
                self._model,
                revision=self.revision,
                cache_dir=self._cache(),
                local_files_only=True,
                allow_patterns=["config.json", ADAPTER_CONFIG],
            )
        return Snapshot(Path(folder), Path(folder).name)

    def cached_instead(self, error: _Unreachable) -> Snapshot:
        """Return what the cache has where the hub cannot be reached; raise `error` where it has nothing."""
        try:
            snapshot = self.cached()
        except CheckpointError:
            raise error from None
        note = f"{error.found}; {self._model} is read from the local cache, where {self.revision} may be older"
        return Snapshot(snapshot.folder, snapshot.commit, (note,))

    @contextmanager
    def said_in_words(self) -> Iterator[None]:
        """Turn every error of the library into one of ours."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # httpx, requests, OSError: it depends on the library's version
            raise self._in_words(error) from None

    def _in_words(self, error: Exception) -> CheckpointError:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "hf auth login, or HF_TOKEN=..."
        if "GatedRepoError" in kinds:
            return self._error(
                f"{self._model} is gated: the hub wants to know who asks",
                f"accept its terms at {self._page}, then: {login}",
            )
        if "RepositoryNotFoundError" in kinds:
            return self._error(
                f"the hub has no model {self._model!r}, or it is private; nor is there a file or folder of this name",
                f"check the spelling; for a private model: {login}",
            )
        if "RevisionNotFoundError" in kinds:
            return self._error(
                f"{self._model} has no revision {self.revision!r}", f"one of those listed at {self._page}/tree/main"
            )
        if self._is_offline:
            return self._error(
                f"{self._model} is not in the local cache, and offline the hub is not asked",
                f"fetch it once: hf download {self._model}",
            )
        if "HFValidationError" in kinds:
            return self._error(f"{self._model!r} is no id of the hub", "org/name")
        if status in (401, 403):
            return self._error(f"the hub does not let this user read {self._model} (HTTP {status})", login)
        if status is not None:
            return self._error(f"the hub answered HTTP {status} for {self._model}", "try again later")
        return _Unreachable(
            f"the hub cannot be reached: {type(error).__name__}: {printable(str(error))[:200]}",
            where=self.where,
            right=f"check the network; or fetch it once, with one: hf download {self._model}",
        )

    @property
    def _page(self) -> str:
        return f"{self._endpoint}/{self._model}"

    def _error(self, found: str, right: str) -> CheckpointError:
        return CheckpointError(found, where=self.where, right=right)
