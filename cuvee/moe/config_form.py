"""The config of a mixture of experts in YAML: mergekit-moe's form."""

from __future__ import annotations

import os
from typing import Any

from cuvee.errors import raise_all
from cuvee.moe.config import ExpertEntry, MoeConfig, check_config
from cuvee.recipes.findings import KeyPath
from cuvee.recipes.yaml_form import YamlForm, misspelt, read_text
from cuvee.recipes.yaml_tree import Entries, Items, Node, read_trees

__all__ = ["load_moe_config", "parse_moe_config"]

_WORDS = ("gate_mode", "dtype", "architecture", "expert_layout", "compat")
_KEYS = (*_WORDS, "base_model", "experts", "shared_experts", "experts_per_token", "seed")
_EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")


def load_moe_config(path: str | os.PathLike[str]) -> MoeConfig:
    """Read a config from a YAML file.

    Raises:
        RecipeError: the file cannot be read.
        Problems: all that is wrong with it, said together; or the one error that is.
    """
    return parse_moe_config(read_text(path), name=os.fspath(path))


def parse_moe_config(text: str, *, name: str = "<config>") -> MoeConfig:
    """Read a config from YAML.

    Args:
        name: of the file, for errors.

    Raises:
        Problems: all that is wrong, said together; or the one error that is.
    """
    roots, problems = read_trees(text, name)
    form = _MoeForm(name)
    for problem in problems:
        form.findings.error(problem.found, (), right=problem.right, where=problem.where)
    for extra in roots[1:]:
        where = f"{name}:{extra.line}:{extra.column}"
        form.findings.error("a second document begins", (), right="one mixture in a file", where=where)
    config = form.config(roots[0] if roots else None, text)
    raise_all(form.findings.errors)
    assert config is not None
    return config


class _MoeForm(YamlForm):
    """Reads the tree of one config; what is wrong goes into `findings`."""

    def config(self, root: Node | None, text: str) -> MoeConfig | None:
        self.places[()] = f"{self.name}:1:1"
        if not isinstance(root, Entries):
            found = "the config is empty" if root is None else "the config is not a mapping of keys to values"
            self.findings.error(found, (), right="base_model: …, experts: …")
            return None
        self._record((), root)
        self._check_keys(root, (), _KEYS, {}, {})
        # "" stands for a model whose name was wrong and has been said to be.
        given: dict[str, Any] = {"base_model": "" if misspelt("base_model", root, _KEYS) else None, "experts": ()}
        for key, (_, node) in root.entries.items():
            if key == "base_model":
                given[key] = self._reference(node, (key,)) or ""
            elif key in ("experts", "shared_experts"):
                given[key] = self._experts(node, (key,))
            elif key in _WORDS:
                given[key] = self._plain(node, (key,)) and self._word(node, (key,))
            elif key in _KEYS:
                given[key] = self._plain(node, (key,))
        given = {key: value for key, value in given.items() if value is not None or key == "base_model"}
        config = MoeConfig(**given, text=text, places=self.places)
        check_config(config, self.findings)
        return MoeConfig(**{**vars(config), "notes": self.findings.warnings})

    def _experts(self, node: Node, path: KeyPath) -> tuple[ExpertEntry, ...]:
        if not isinstance(node, Items):
            if self._plain(node, path) is not None:
                self.findings.error(f"{path[-1]} is not a list", path, right=f"{path[-1]}: [{{source_model: …}}, …]")
            return ()
        return tuple(self._expert(item, (*path, index)) for index, item in enumerate(node.items))

    def _expert(self, node: Node, path: KeyPath) -> ExpertEntry:
        if not isinstance(node, Entries):
            return ExpertEntry(self._reference(node, path) or "")
        self._check_keys(node, path, _EXPERT_KEYS, {}, {})
        given: dict[str, Any] = {"source_model": "" if misspelt("source_model", node, _EXPERT_KEYS) else None}
        for key, (_, value) in node.entries.items():
            if key == "source_model":
                given[key] = self._reference(value, (*path, key)) or ""
            elif key in _EXPERT_KEYS and (plain := self._plain(value, (*path, key))) is not None:
                given[key] = plain
        return ExpertEntry(**given)
