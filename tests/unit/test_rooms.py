"""The house: which room may import which, and what the package shows."""

import ast
import subprocess
import sys
from pathlib import Path

import cuvee

ROOT = Path(cuvee.__file__).parent
ORDER = [
    "_version", "errors", "tensors", "checkpoints", "architectures", "tokenizers", "methods", "recipes", "engine",
    "statistics", "learning", "moe", "evaluation", "reports", "testing", "cli",
]  # fmt: skip


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "cuvee" and len(parts) > 1 else None


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_a_room_imports_only_rooms_below_it():
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        own = relative.parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        for module in _imports(path):
            room = _room(module)
            if room and room in ORDER and room != "__version__":
                assert ORDER.index(room) <= ORDER.index(own), f"{relative} imports {module}"


def test_every_file_says_its_subject_in_its_first_line():
    for path in ROOT.rglob("*.py"):
        assert (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].endswith((".", ":", "?")), path


def test_public_names_are_sorted_and_exist():
    assert cuvee.__all__ == sorted(cuvee.__all__)
    for name in cuvee.__all__:
        assert getattr(cuvee, name) is not None


def test_every_all_is_sorted_and_true():
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = ast.literal_eval(node.value)
                assert names == sorted(names) or names == sorted(names, key=_shouting_first), path


def _shouting_first(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_methods_are_listed_without_torch():
    code = "import sys, cuvee; cuvee.methods(); cuvee.Recipe('ties'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
