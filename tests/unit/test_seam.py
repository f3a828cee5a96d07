"""The seam: files of models, manifests, journals and targets are touched by `checkpoints/fs.py` alone."""

import ast
from pathlib import Path

import cuvee

ROOT = Path(cuvee.__file__).parent
OF_PATH = {
    "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_symlink", "iterdir", "lstat", "mkdir", "open",
    "read_bytes", "read_text", "readlink", "rename", "resolve", "rglob", "rmdir", "stat", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
PURE = {"fspath", "fsdecode", "fsencode", "PathLike", "environ", "devnull", "cpu_count", "sched_getaffinity", "_exit",
        "getpid", "sysconf", "process_cpu_count"}  # fmt: skip
PURE_OF_PATHS = {"abspath", "expanduser", "join", "basename", "normpath"}
# what is no model, manifest, journal or target: a recipe, the demo's own files, the terminal, the process
ELSEWHERE = {"recipes/yaml_form.py", "cli/app.py", "cli/clock.py", "cli/failing.py", "cli/stopping.py"}


def touches(tree: ast.AST) -> set[str]:
    """Return the file calls in a module that do not go through the seam."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "open":
            found.add("open")
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner == "os.path":
            touched = node.attr not in PURE_OF_PATHS
        elif owner == "os":
            touched = node.attr not in {*PURE, "path"}
        elif owner in ("shutil", "tempfile", "mmap", "io"):
            touched = node.attr not in ("RawIOBase", "BytesIO", "StringIO", "TextIOWrapper")
        else:
            touched = node.attr in OF_PATH and owner not in ("fs", "self", "cls") and not _is_ours(owner)
        if touched:
            found.add(f"{owner}.{node.attr}")
    return found


def _is_ours(owner: str) -> bool:
    """True for classes of ours that have a method `open`."""
    return owner.split(".")[-1] in ("ModelFile", "_Archive", "opener")


def test_file_calls_go_through_the_seam():
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in ELSEWHERE or name.startswith(("evaluation/", "testing/")) or name == "checkpoints/fs.py":
            continue
        assert touches(ast.parse(path.read_text())) == set(), name


def test_the_test_sees_file_calls():
    seen = touches(ast.parse("os.stat(p); open(p); p.exists(); shutil.copy(p, q); os.path.isfile(p); os.fspath(p)"))
    assert seen == {"os.stat", "open", "p.exists", "shutil.copy", "os.path.isfile"}
