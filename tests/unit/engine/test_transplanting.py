"""Transplanted tokenizers: laws of every way to make rows, and what comes out as a model."""

from __future__ import annotations

import json

import pytest
import torch
from models import LLAMA, assert_equal, contents, family, llama_shapes, read_folder, write_model
from token_models import bpe, unigram, write_token_model, write_tokenizer

import cuvee
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, MethodError, ResourceError
from cuvee.tokenizers.transplant import METHODS, Approximation

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LETTERS = [chr(ord("a") + n) for n in range(24)]
BASE = bpe([*LETTERS, "Ġ", "ab"], ["a b"], {"</s>": 26})
DONOR = bpe(["Ġ", *reversed(LETTERS), "cd", "abcd"], [], {"<end>": 27, "<new>": 28})
CD, ABCD = 25, 26
NEW = [CD, ABCD, 28]  # ids of the donor that the base lacks; <end> has the role of </s>


def tensors_of(vocabulary: int, hidden: int, seed: int, tied: bool = False) -> dict[str, torch.Tensor]:
    config = {**LLAMA, "vocab_size": vocabulary, "hidden_size": hidden, "tie_word_embeddings": tied}
    return family(0, llama_shapes(config), seed=seed)[0]


def rotation(size: int, seed: int = 5) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed))).Q


@pytest.fixture
def pair(workplace):
    """A base, and a donor whose space is the base's, turned; with the rows that new tokens have in the base's space."""
    base = write_token_model(workplace / "base", BASE)
    donor = tensors_of(29, 16, seed=1)
    turn, truth = rotation(16), {}
    ids = {**BASE["model"]["vocab"], "<end>": 26}
    for name in (EMBED, HEAD):
        truth[name] = donor[name].clone()
        for token, number in {**DONOR["model"]["vocab"], "<end>": 27}.items():
            if token in ids:
                truth[name][number] = base[name][ids[token]]
        donor[name] = truth[name] @ turn
    write_model(workplace / "donor", donor, {**LLAMA, "vocab_size": 29, "eos_token_id": 27})
    write_tokenizer(workplace / "donor", DONOR, {"eos_token": "<end>"})
    return base, truth


def test_its_own_tokenizer_changes_nothing(workplace):
    base = write_token_model(workplace / "base", BASE, rows=32)
    cuvee.transplant("base", "base", "out")
    assert_equal(read_folder(workplace / "out"), base)
    assert contents(workplace / "out")["tokenizer.json"] == contents(workplace / "base")["tokenizer.json"]


@pytest.mark.parametrize("method", ["omp", "landmark_pca"])
def test_a_turned_space_gives_back_the_true_rows(workplace, pair, method):
    base, truth = pair
    cuvee.transplant("base", "donor", "out", how=Approximation(method, k=16))
    made = read_folder(workplace / "out")
    for name in (EMBED, HEAD):
        assert torch.allclose(made[name], truth[name], atol=2e-5)
    assert_equal(
        {n: t for n, t in made.items() if n not in (EMBED, HEAD)}, {n: base[n] for n in made.keys() - {EMBED, HEAD}}
    )


@pytest.mark.parametrize("method", METHODS)
def test_shared_tokens_keep_their_rows_bit_for_bit_and_new_ones_are_finite(workplace, pair, method):
    _, truth = pair
    cuvee.transplant("base", "donor", "out", how=Approximation(method, k=4))
    made = read_folder(workplace / "out")
    shared = [n for n in range(29) if n not in NEW]
    for name in (EMBED, HEAD):
        assert torch.equal(made[name][shared], truth[name][shared])
        assert made[name].shape == (29, 16) and torch.isfinite(made[name]).all()
        assert bool(made[name][NEW].any()) is (method != "zero")


def test_one_atom_gives_a_scaled_copy_of_one_row(workplace, pair):
    base, _ = pair
    cuvee.transplant("base", "donor", "out", how=Approximation("omp", k=1))
    row = read_folder(workplace / "out")[EMBED][CD]
    cosines = torch.nn.functional.cosine_similarity(base[EMBED], row[None])
    assert float(cosines.abs().max()) == pytest.approx(1.0, abs=1e-6)


def test_the_tokenizer_config_and_special_ids_are_the_donors(workplace, pair):
    (workplace / "base/generation_config.json").write_text('{"eos_token_id": 26, "top_p": 0.5}')
    cuvee.transplant("base", "donor", "out")
    out, donor = contents(workplace / "out"), contents(workplace / "donor")
    assert out["tokenizer.json"] == donor["tokenizer.json"]
    assert out["tokenizer_config.json"] == donor["tokenizer_config.json"]
    config = json.loads(out["config.json"])
    assert config["vocab_size"] == 29
    assert json.loads(out["generation_config.json"]) == {"eos_token_id": 27, "top_p": 0.5}
    said = json.loads(out["cuvee.json"])["tokens"]
    assert said["matched"] == {"same text": 25, "same role": 1}
    assert said["models"][0]["filled"][EMBED] == {"the base's own rows": 26, "made by omp": 3}


def test_the_donor_may_have_another_width_and_padding(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "wide", DONOR, rows=32, hidden_size=24, seed=1)
    cuvee.transplant("base", "wide", "out")
    base, made = read_folder(workplace / "base"), read_folder(workplace / "out")
    assert made[EMBED].shape == (32, 16)
    assert torch.allclose(made[EMBED][29:], base[EMBED].mean(0).expand(3, 16), atol=1e-6)


def test_a_tied_model_stays_tied(workplace):
    write_token_model(workplace / "base", BASE, tie_word_embeddings=True)
    write_token_model(workplace / "donor", DONOR, seed=1)
    cuvee.transplant("base", "donor", "out")
    assert HEAD not in read_folder(workplace / "out")
    assert json.loads((workplace / "out/config.json").read_text())["tie_word_embeddings"] is True


def test_a_bias_of_the_head_is_combined_as_its_rows_are(workplace, pair):
    base, _ = pair
    bias = torch.arange(27, dtype=torch.float32)
    write_model(workplace / "biased", {**base, "lm_head.bias": bias}, {**LLAMA, "vocab_size": 27})
    write_tokenizer(workplace / "biased", BASE)
    cuvee.transplant("biased", "donor", "out", how=Approximation("subword", subword_method="sum"))
    made = read_folder(workplace / "out")["lm_head.bias"]
    assert made[27] == 26 and made[CD] == 2 + 3 and made[ABCD] == 25 + 2 + 3


@pytest.mark.parametrize(
    ("method", "embedding", "head"),
    [
        ("mean", {"ab": 1 / 3, "c": 1 / 3, "d": 1 / 3}, {"ab": 1 / 3, "c": 1 / 3, "d": 1 / 3}),
        ("sum", {"ab": 1, "c": 1, "d": 1}, {"ab": 1, "c": 1, "d": 1}),
        ("weighted_mean", {"ab": 1 / 6, "c": 2 / 6, "d": 3 / 6}, {"ab": 3 / 6, "c": 2 / 6, "d": 1 / 6}),
        ("first_last", {"d": 1}, {"ab": 1}),
    ],
)
def test_pieces_are_those_of_the_bases_own_segmentation(workplace, pair, method, embedding, head):
    base, _ = pair
    cuvee.transplant("base", "donor", "out", how=Approximation("subword", subword_method=method))
    made, ids = read_folder(workplace / "out"), BASE["model"]["vocab"]
    for name, weights in ((EMBED, embedding), (HEAD, head)):
        row = sum(weight * base[name][ids[piece]] for piece, weight in weights.items())
        assert torch.allclose(made[name][ABCD], row, atol=1e-6)


def test_a_mean_and_its_noise_and_scale(workplace, pair):
    base, _ = pair
    cuvee.transplant("base", "donor", "plain", how=Approximation("mean"))
    mean = base[EMBED].mean(0)
    assert torch.allclose(read_folder(workplace / "plain")[EMBED][CD], mean, atol=1e-6)
    how = Approximation("mean", noise=0.1, scale=2.0, seed=7)
    cuvee.transplant("base", "donor", "noisy", how=how)
    made = read_folder(workplace / "noisy")
    drawn = made[EMBED][NEW] / 2 - mean
    assert 0.05 < float(drawn.std()) < 0.15 and not torch.allclose(drawn[0], drawn[1])
    cuvee.transplant("base", "donor", "again", how=how, threads=1, shard_size=2000)
    assert_equal(read_folder(workplace / "again"), made)


def test_bytes_and_beginnings_are_matched_when_asked(workplace):
    base = unigram([("<unk>", 0.0), ("▁a", -1.0), ("<0x62>", -1.0), ("▁", -1.0), ("a", -1.0)])
    donor = bpe(["Ġa", "b", "ac", "Ġabc"])
    rows = write_token_model(workplace / "base", base)
    write_token_model(workplace / "donor", donor, seed=1)
    zero = {"method": "zero"}
    for out, options, matched in (
        ("plain", {}, {0: 1}),
        ("bytes", {"byte_match": "yes"}, {0: 1, 1: 2}),
        ("both", {"byte_match": "yes", "prefix_match": "yes"}, {0: 1, 1: 2, 2: 4, 3: 1}),
    ):
        cuvee.transplant("base", "donor", out, how=Approximation(**zero, **options))
        made = read_folder(workplace / out)[EMBED]
        expected = torch.zeros(4, 16)
        for number, own in matched.items():
            expected[number] = rows[EMBED][own]
        assert torch.equal(made, expected)
    cuvee.transplant("base", "donor", "heads", how=Approximation(**zero, prefix_match="lm_head_only"))
    made = read_folder(workplace / "heads")
    assert not made[EMBED][2].any() and torch.equal(made[HEAD][2], rows[HEAD][4])


def test_hardly_trained_rows_become_zero(workplace, pair):
    base, _ = pair
    base[EMBED][3] *= 1e-6
    write_model(workplace / "weak", base, {**LLAMA, "vocab_size": 27})
    write_tokenizer(workplace / "weak", BASE)
    cuvee.transplant("weak", "donor", "out", how=Approximation(magikarp=True))
    assert not read_folder(workplace / "out")[EMBED][DONOR["model"]["vocab"]["d"]].any()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"how": Approximation("opm")}, MethodError, "did you mean 'omp'"),
        ({"how": Approximation(k=0)}, MethodError, "k is 0"),
        ({"how": Approximation(noise=float("nan"))}, MethodError, "noise is nan"),
        ({"memory": 1000}, ResourceError, "too little"),
    ],
)
def test_what_is_wrong_is_said_first(workplace, pair, options, kind, said):
    with pytest.raises(kind) as failed:
        cuvee.transplant("base", "donor", "out", **options)
    assert said in str(failed.value) and not (workplace / "out").exists()


def test_models_that_cannot_be_matched_are_refused(workplace, pair):
    write_token_model(workplace / "strange", bpe(["×"]), seed=2)
    with pytest.raises(IncompatibleModels, match="share no token"):
        (workplace / "strange/tokenizer_config.json").write_text("{}")
        cuvee.transplant("base", "strange", "out")
    (workplace / "strange/tokenizer.json").unlink()
    with pytest.raises(IncompatibleModels, match="'strange' has no tokenizer"):
        cuvee.transplant("base", "strange", "out")
    with pytest.raises((CheckpointError, CuveeError)):
        cuvee.transplant("base", "nowhere", "out")
