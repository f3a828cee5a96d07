"""Tasks of lm-evaluation-harness over a local file, and tiny language models of bytes to score on them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cuvee.evaluation.model_folders import save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama

SHAPE = Shape(hidden=32, intermediate=48, layers=2, heads=4, key_value_heads=2, context=48)
SUMS = [(a, b) for a in range(8) for b in range(4)]

_DATA = """\
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
fewshot_split: test
"""
_TASKS = {
    "pick": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "write": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "read": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
}
_GROUP = """\
group: both
task: [pick, write]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def model(seed: int) -> TinyLlama:
    """Return a model that nobody has trained, whose opinions are strong enough to differ."""
    made = TinyLlama(SHAPE, seed=seed).requires_grad_(False)
    made.lm_head.weight.mul_(20)
    return made.eval()


def save(one: TinyLlama, folder: Path) -> str:
    """Write a model whose tokenizer has a token for the end, the byte 0; return its folder's name."""
    save_model(one, folder)
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "\u0100"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return str(folder)


def written_by(one: TinyLlama, question: str, count: int = 3) -> str:
    """Return what a model writes after a question, most likely byte first, up to the end of the line."""
    seen = list(question.encode())
    for _ in range(count):
        seen.append(int(one(torch.tensor([seen]))[0, -1].argmax()))
    text = bytes(seen[len(question) :]).decode(errors="replace")
    return text.split("\n")[0].split("\0")[0]


def nats_of(one: TinyLlama, before: str, after: str) -> float:
    """Return log p(after | before)."""
    seen, answer = before.encode(), after.encode()
    logits = one(torch.tensor([list(seen + answer)]))[0].log_softmax(-1)
    return sum(float(logits[len(seen) - 1 + place, byte]) for place, byte in enumerate(answer))


def write_tasks(folder: Path, right: TinyLlama) -> Path:
    """Write the tasks, and data on which half of what `right` writes is right."""
    folder.mkdir()
    rows = []
    for place, (a, b) in enumerate(SUMS):
        question = f"{a}+{b}="
        answer = written_by(right, question) if place % 2 else "wrong"
        choices = [str(a + b), str(a + b + 1), str(a + b + 2)]
        text = f"The sum of {a} and {b} is {a + b}. " * (1 + place % 3)  # the longest take two windows
        rows.append({"question": question, "choices": choices, "right": place % 3, "answer": answer, "text": text})
    write_rows(folder, rows)
    for name, text in _TASKS.items():
        write_task(folder, name, text)
    (folder / "both.yaml").write_text(_GROUP)
    return folder


def write_task(folder: Path, name: str, text: str) -> None:
    """Write one more task over the same data."""
    data = _DATA.format(file=folder / "rows.jsonl")
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    """Write the data."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(folder: Path) -> list[dict[str, object]]:
    """Read the data."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
