"""Recipes in YAML: mergekit's form, with Cuvée's own keys beside it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import RecipeError, nearest, raise_all
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.recipe import Module, Recipe, RecipeModel, Slice
from cuvee.recipes.staging import chain_stages
from cuvee.recipes.tokenizer_form import read_request
from cuvee.recipes.validation import examine_values
from cuvee.recipes.yaml_tree import MAX_CHARACTERS, Entries, Items, Node, Scalar, read_trees
from cuvee.tokenizers.request import TokenizerRequest

__all__ = ["YamlForm", "load_recipe", "misspelt", "parse_recipe", "read_text"]

_WORD_KEYS = ("merge_method", "dtype", "out_dtype", "compute_dtype", "compat", "name", "chat_template")
_KEYS = (
    *_WORD_KEYS,
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "seed",
    "exclude",
    "only",
    "before",
    "after",
    "tokenizer",
    "tokenizer_source",
)
_MODEL_KEYS = ("model", "parameters", "layer_range", "statistics")
_MODULE_KEYS = ("models", "slices", "parameters")
_SLICE_KEYS = ("sources", "parameters", "base_model")

_LATER = {
    "space": ("space is not supported yet", "leave it out"),
    "statistics": ("statistics belong to one model", "models: [{model: …, statistics: a.safetensors}]"),
}
_WITHOUT_EFFECT = {
    "residual_weight": "mergekit reads it and does not use it",
    "random_seed": "seed: is the key for it",
    "int8_mask": "signs take little memory without it",
    "trust_remote_code": "no code of a model is run",
    "allow_crimes": "what can be merged is found from the tensors",
    "lazy_unpickle": "tensors are always read as they are needed",
    "low_cpu_memory": "memory is bounded in any case",
    "copy_tokenizer": "the files of the base model are always copied",
    "out_shard_size": "the size of output files is an option of the command",
}


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: the file cannot be read.
        Problems: all that is wrong with it, said together; or the one error that is.
    """
    return parse_recipe(read_text(path), name=os.fspath(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a recipe's file.

    Raises:
        RecipeError: it cannot be read, is too large, or is not UTF-8.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be read: {error.strerror}", where=name, right="the path of a file"
        ) from None
    if len(content) > MAX_CHARACTERS:
        raise RecipeError(f"the file has more than {MAX_CHARACTERS} bytes", where=name, right="a recipe in YAML")
    return _decoded(content, name)


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise RecipeError(
            f"byte 0x{content[error.start]:02x} is not UTF-8", where=f"{name}:{line}:{column}", right="save it as UTF-8"
        ) from None


def parse_recipe(text: str, *, name: str = "<recipe>") -> Recipe:
    """Read a recipe from YAML. Of several documents (`---`), those with a name are stages, which the others use by it.

    Args:
        name: of the file, for errors.

    Raises:
        Problems: all that is wrong, said together; or the one error that is.
    """
    roots, problems = read_trees(text, name)
    forms = [YamlForm(name) for _ in roots or (None,)]
    for problem in problems:
        forms[0].findings.error(problem.found, (), right=problem.right, where=problem.where)
    recipes = [form.recipe(root, text) for form, root in zip(forms, roots or (None,), strict=True)]
    for form, recipe in zip(forms, recipes, strict=True):
        if form.findings.errors:
            examine_values(recipe, form.findings)
    raise_all([error for form in forms for error in form.findings.errors])
    return chain_stages(recipes) if len(recipes) > 1 else recipes[0]


class YamlForm:
    """Reads the tree of one recipe; what is wrong goes into `findings`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        self.findings = Findings(self.places)

    def recipe(self, root: Node | None, text: str) -> Recipe:
        self.places[()] = f"{self.name}:1:1"
        fields: dict[str, Any] = {}
        if not isinstance(root, Entries):
            self.findings.error(_not_a_recipe(root), (), right="merge_method: …, models: …")
        else:
            self._record((), root)
            self._check_keys(root, (), _KEYS, _LATER, _WITHOUT_EFFECT)
            readers = self._readers()
            for key, (_, node) in root.entries.items():
                if key in readers and not _is_empty(node):
                    fields[key] = readers[key](node, (key,))
            self._check_parts(root)
            self._settle_tokenizer(fields)
        given = {key: value for key, value in fields.items() if value is not None}
        given.setdefault("merge_method", "")
        return Recipe(**given, from_yaml=True, text=text, places=self.places, notes=self.findings.warnings)

    def _readers(self) -> dict[str, Callable[[Node, KeyPath], Any]]:
        return {
            **dict.fromkeys(_WORD_KEYS, self._word),
            "models": self._models,
            "slices": self._slices,
            "modules": self._modules,
            "base_model": self._reference,
            "parameters": self._parameters,
            "seed": self._plain,
            **dict.fromkeys(("exclude", "only"), self._patterns),
            **dict.fromkeys(("before", "after"), self._edits),
            "tokenizer": lambda node, path: read_request(node, path, self._reference, self.findings),
            "tokenizer_source": self._reference,
        }

    def _settle_tokenizer(self, fields: dict[str, Any]) -> None:
        """Let mergekit's older `tokenizer_source: X` be `tokenizer: {source: X}`."""
        source = fields.pop("tokenizer_source", None)
        if source is not None and fields.get("tokenizer") is not None:
            found = "tokenizer and tokenizer_source are both given"
            self.findings.error(found, ("tokenizer_source",), right=f"tokenizer: {{source: {source}}}")
        elif source is not None:
            fields["tokenizer"] = TokenizerRequest(source)

    def _check_parts(self, root: Entries) -> None:
        """Note that the recipe names no method or no models, where nothing in the text stands for them."""
        if _is_absent(root, "merge_method") and not misspelt("merge_method", root, _KEYS):
            self.findings.error("there is no merge_method", (), right="merge_method: linear")
        stand_ins = [key for key in ("slices", "modules") if key in root.entries]
        if _is_absent(root, "models") and not stand_ins and not misspelt("models", root, _KEYS):
            self.findings.error("there are no models", (), right="models: [first, second]")

    def _check_keys(
        self,
        node: Entries,
        path: KeyPath,
        known: tuple[str, ...],
        later: Mapping[str, tuple[str, str]],
        without_effect: Mapping[str, str],
    ) -> None:
        for key, (_, value) in node.entries.items():
            at = (*path, key)
            if key in later:
                found, right = later[key]
                self.findings.error(found, at, right=right)
            elif key in without_effect:
                self.findings.warn(f"{key} has no effect: {without_effect[key]}", at)
            elif key not in known:
                self.findings.error(f"unknown key {key!r}", at, right=_suggestion(key, value, known))

    def _record(self, path: KeyPath, node: Node) -> None:
        """Note the places of all that stands in `node`, keys at their first letter."""
        if isinstance(node, Entries):
            for key, (at, value) in node.entries.items():
                self.places[(*path, key)] = f"{self.name}:{at.line}:{at.column}"
                self._record((*path, key), value)
        elif isinstance(node, Items):
            for index, item in enumerate(node.items):
                self.places[(*path, index)] = f"{self.name}:{item.line}:{item.column}"
                self._record((*path, index), item)

    def _word(self, node: Node, path: KeyPath) -> str | None:
        if isinstance(node, Scalar) and node.text and node.value is not None:
            return node.text
        self.findings.error(f"{path[-1]} is {_kind(node)}", path, right=f"{path[-1]}: a word")
        return None

    def _plain(self, node: Node, path: KeyPath) -> Any:
        """Return what the node means as plain values."""
        if isinstance(node, Scalar):
            return node.value
        if isinstance(node, Items):
            return [self._plain(item, (*path, index)) for index, item in enumerate(node.items)]
        return {key: self._plain(value, (*path, key)) for key, (_, value) in node.entries.items()}

    def _patterns(self, node: Node, path: KeyPath) -> list[Any]:
        """Return a list of patterns; one alone may stand without a list."""
        nodes = node.items if isinstance(node, Items) else (node,)
        return [one.text if isinstance(one, Scalar) else self._plain(one, path) for one in nodes]

    def _modules(self, node: Node, path: KeyPath) -> dict[str, Module] | None:
        if not isinstance(node, Entries) or not node.entries:
            found = "empty" if isinstance(node, Entries) else _kind(node)
            self.findings.error(f"modules is {found}", path, right="modules: {text_decoder: {models: [first, second]}}")
            return None
        return {name: self._module(one, (*path, name)) for name, (_, one) in node.entries.items()}

    def _module(self, node: Node, path: KeyPath) -> Module:
        if not isinstance(node, Entries):
            self.findings.error(f"the module is {_kind(node)}", path, right=f"{path[-1]}: {{models: [first, second]}}")
            return Module()
        self._check_keys(node, path, _MODULE_KEYS, {}, {})
        given = {key: one for key, (_, one) in node.entries.items() if not _is_empty(one)}
        models = self._models(given["models"], (*path, "models")) if "models" in given else None
        slices = self._slices(given["slices"], (*path, "slices")) if "slices" in given else None
        parameters = self._parameters(given["parameters"], (*path, "parameters")) if "parameters" in given else None
        return Module(models or (), slices or (), parameters or {})

    def _slices(self, node: Node, path: KeyPath) -> list[Slice] | None:
        if not isinstance(node, Items):
            self.findings.error(f"slices is {_kind(node)}", path, right="slices: [{sources: [{model: …, …}]}]")
            return None
        if not node.items:
            self.findings.error("slices is empty", path, right="slices: [{sources: [{model: …, …}]}]")
        return [self._slice(item, (*path, index)) for index, item in enumerate(node.items)]

    def _slice(self, node: Node, path: KeyPath) -> Slice:
        if not isinstance(node, Entries):
            self.findings.error(f"the slice is {_kind(node)}", path, right="- sources: [{model: …, …}]")
            return Slice(())
        self._check_keys(node, path, _SLICE_KEYS, {}, _WITHOUT_EFFECT)
        sources: list[RecipeModel] | None = None
        parameters: dict[str, Any] | None = None
        base_model = None
        if not _is_absent(node, "sources"):
            sources = self._models(node.entries["sources"][1], (*path, "sources"))
        if not _is_absent(node, "parameters"):
            parameters = self._parameters(node.entries["parameters"][1], (*path, "parameters"))
        if not _is_absent(node, "base_model"):
            base_model = self._reference(node.entries["base_model"][1], (*path, "base_model"))
        return Slice(sources or (), parameters or {}, base_model)

    def _models(self, node: Node, path: KeyPath) -> list[RecipeModel] | None:
        if not isinstance(node, Items):
            key = path[-1]
            self.findings.error(f"{key} is {_kind(node)}", path, right=f"{key}: [first, second], or a - before each")
            return None
        models = [self._model(item, (*path, index)) for index, item in enumerate(node.items)]
        return [RecipeModel(None) if model is None else model for model in models]

    def _model(self, node: Node, path: KeyPath) -> RecipeModel | None:
        if not isinstance(node, Entries):
            reference = self._reference(node, path)
            return None if reference is None else RecipeModel(reference)
        self._check_keys(node, path, _MODEL_KEYS, {}, {})
        parameters: dict[str, Any] = {}
        if not _is_absent(node, "parameters"):
            parameters = self._parameters(node.entries["parameters"][1], (*path, "parameters")) or {}
        if "model" not in node.entries:
            if not misspelt("model", node, _MODEL_KEYS):
                self.findings.error("the entry names no model", path, right="model: a folder, a file or a hub id")
            return RecipeModel(None, parameters)
        layers = None
        if not _is_absent(node, "layer_range"):
            said = self._plain(node.entries["layer_range"][1], (*path, "layer_range"))
            layers = tuple(said) if isinstance(said, list) else said
        statistics = None
        if not _is_absent(node, "statistics"):
            statistics = self._word(node.entries["statistics"][1], (*path, "statistics"))
        reference = self._reference(node.entries["model"][1], (*path, "model"))
        return RecipeModel(reference, parameters, layers, statistics)

    def _reference(self, node: Node, path: KeyPath) -> str | None:
        """Return "path@revision+adapter" of a model written as text or as mergekit's mappings."""
        if not isinstance(node, Entries):
            return self._path(node, path)
        self._check_keys(
            node,
            path,
            ("model", "path", "revision", "lora"),
            {},
            {"override_architecture": "tensors are found by their names"},
        )
        stem = "model" if "model" in node.entries else "path"
        if stem not in node.entries:
            self.findings.error("the mapping names no model", path, right="{path: …, revision: …}")
            return None
        found = self._path(node.entries[stem][1], (*path, stem))
        if found is not None and not _is_absent(node, "revision"):
            found = f"{found}@{self._word(node.entries['revision'][1], (*path, 'revision'))}"
        if found is not None and not _is_absent(node, "lora"):
            found = f"{found}+{self._path(node.entries['lora'][1], (*path, 'lora'))}"
        return found

    def _path(self, node: Node, path: KeyPath) -> str | None:
        """Return "path@revision" of one folder, file or hub id."""
        if isinstance(node, Scalar) and node.text and node.value is not None:
            return node.text
        if isinstance(node, Entries) and isinstance(path[-1], str) and path[-1] in ("model", "lora"):
            self._check_keys(node, path, ("path", "revision"), {}, {})
            if not _is_absent(node, "path"):
                found = self._word(node.entries["path"][1], (*path, "path"))
                if _is_absent(node, "revision"):
                    return found
                return f"{found}@{self._word(node.entries['revision'][1], (*path, 'revision'))}"
        self.findings.error(f"the model is {_kind(node)}", path, right="a folder, a file or a hub id")
        return None

    def _parameters(self, node: Node, path: KeyPath) -> dict[str, Any] | None:
        if not isinstance(node, Entries):
            self.findings.error(f"parameters is {_kind(node)}", path, right="parameters: {weight: 0.5}")
            return None
        values = {key: self._plain(value, (*path, key)) for key, (_, value) in node.entries.items()}
        if "lambda" in values:
            if "scaling" in values:
                self.findings.error(
                    "lambda is mergekit's word for scaling, and both are given", (*path, "lambda"), right="scaling"
                )
            scaling = values.pop("lambda")
            values.setdefault("scaling", scaling)
            self._rename_place((*path, "lambda"), (*path, "scaling"))
        return values

    def _rename_place(self, old: KeyPath, new: KeyPath) -> None:
        """Let what was read as `new` be found where `old` was written."""
        found = {path: place for path, place in self.places.items() if path[: len(old)] == old}
        for path, place in found.items():
            self.places.setdefault((*new, *path[len(old) :]), place)

    def _edits(self, node: Node, path: KeyPath) -> list[Any] | None:
        if not isinstance(node, Items):
            self.findings.error(f"{path[-1]} is {_kind(node)}", path, right=f"{path[-1]}: [trim: {{density: 0.5}}]")
            return None
        return [self._plain(item, (*path, index)) for index, item in enumerate(node.items)]


def _is_empty(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _is_absent(node: Entries, key: str) -> bool:
    return key not in node.entries or _is_empty(node.entries[key][1])


def misspelt(key: str, node: Entries, known: tuple[str, ...]) -> bool:
    """True when an unknown key is meant for `key`, so that it need not be said to be missing too."""
    others = [other for other in node.entries if other not in known]
    return bool(difflib.get_close_matches(key, others, n=1, cutoff=0.55))


def _not_a_recipe(root: Node | None) -> str:
    if root is None or _is_empty(root):
        return "the recipe is empty"
    return f"the recipe is {_kind(root)}, not a mapping of keys to values"


def _kind(node: Node) -> str:
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Entries):
        return "a mapping"
    return "empty" if node.value is None or not node.text else repr(node.text)


def _suggestion(key: str, value: Node, known: tuple[str, ...]) -> str:
    """Return the nearest known key, or `parameters:` for what looks like a setting."""
    near = nearest(key, known)
    is_setting = isinstance(value, Items) or (isinstance(value, Scalar) and not isinstance(value.value, str | None))
    if near.startswith("one of: ") and is_setting and "parameters" in known:
        return f"under parameters, if it is one: parameters: {{{key}: …}}"
    return near
