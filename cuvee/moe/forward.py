"""A forward pass through a dense model that holds one layer at a time, whatever its files are (fp8, adapters, shards).

B prompts, T tokens, H hidden size. The layers are those of transformers; weights come from the model's sources and
leave memory when the layer is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from cuvee.checkpoints.sources import Scratch, TensorSource
from cuvee.errors import IncompatibleModels
from cuvee.moe.dense import EMBEDDING, Dense
from cuvee.statistics.networks import need_transformers
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Pass", "embeddings_of", "run_layers"]

Block = Callable[[int, "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Pass:
    """How the forward pass is done.

    Attributes:
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16".
        batch: prompts at a time.
    """

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 32

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and states."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


@dataclass(frozen=True)
class Batch:
    """Some prompts, padded on the left.

    Attributes:
        first: the number of the first among all prompts.
        tokens: (B, T).
        mask: (B, T), 1 for tokens, 0 for padding.
    """

    first: int
    tokens: Tensor
    mask: Tensor


def batches(rows: Sequence[Sequence[int]], size: int, padding: int) -> Iterator[Batch]:
    """Cut prompts into batches, each padded to its longest."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        width = max(map(len, some))
        tokens = torch.tensor([[padding] * (width - len(row)) + list(row) for row in some])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some])
        yield Batch(first, tokens, mask)


def embeddings_of(dense: Dense, tokens: Sequence[int]) -> dict[int, Tensor]:
    """Return the embedding row of each token, (H,) float32; only these rows are read."""
    source, scratch = dense.model.tensors[EMBEDDING], Scratch()
    width = dense.hidden
    return {
        token: source.read(token * width, (token + 1) * width, scratch, "row").float().clone()
        for token in sorted(set(tokens))
    }


def run_layers(
    dense: Dense,
    rows: Sequence[Sequence[int]],
    padding: int,
    how: Pass,
    *,
    at_layer: Callable[[int, Batch, Tensor], None] | None = None,
    at_mlp: Callable[[int, Batch, Tensor], None] | None = None,
    block: Block | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run prompts through all layers, telling what goes into them.

    Args:
        rows: token ids of each prompt.
        padding: the token that fills shorter prompts on the left; it is masked.
        at_layer: told the layer's number, the batch, and the layer's input (B, T, H).
        at_mlp: told the layer's number, the batch, and its MLP's input, which a router would see (B, T, H).
        block: computes (B, T, H) in place of layer i's MLP.
        progress: told how many layers are done, of all.

    Raises:
        ResourceError: transformers is not installed.
        IncompatibleModels: transformers does not know the model's family.
    """
    net = _empty_net(dense, block)
    embedded = embeddings_of(dense, [token for row in rows for token in row] + [padding])
    done, total = 0, dense.layers * -(-len(rows) // how.batch)
    now: list[Batch] = []

    def counted() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    _hook(net, dense, how, now, at_layer, at_mlp, counted)
    with torch.inference_mode():
        for batch in batches(rows, how.batch, padding):
            now[:] = [batch]
            states = torch.stack([torch.stack([embedded[int(token)] for token in row]) for row in batch.tokens])
            net(
                inputs_embeds=states.to(how.device, how.torch_dtype),
                attention_mask=batch.mask.to(how.device),
                use_cache=False,
            )


def _empty_net(dense: Dense, block: Block | None) -> Any:
    """Return the decoder without weights; where they are to come layer by layer."""
    transformers = need_transformers("a forward pass", "moe")
    said = {**(dense.model.config or {}), **dense.sizes}
    settings = {key: value for key, value in said.items() if key not in _LEFT_OUT}
    try:
        config = transformers.AutoConfig.for_model(dense.family, **settings)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            net = transformers.AutoModel.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncompatibleModels(
            f"transformers cannot make a {dense.family!r} of config.json: {str(error)[:200]}",
            where=dense.model.label,
            right="a base that transformers loads, or gate_mode: cheap_embed",
        ) from None
    net.rotary_emb = type(net.rotary_emb)(config=config)  # its frequencies are computed, not stored
    net.norm = torch.nn.Identity()
    net.embed_tokens = None
    if block is not None:
        for number, layer in enumerate(net.layers):
            layer.mlp = _standing_in(block, number)
    return net.eval()


_RUN = 1 << 20
_LEFT_OUT = ("model_type", "quantization_config", "auto_map")


def _standing_in(block: Block, number: int) -> torch.nn.Module:
    """Return what stands in a layer for its MLP."""
    module = torch.nn.Module()
    module.forward = partial(block, number)
    return module


def _hook(
    net: Any,
    dense: Dense,
    how: Pass,
    now: Sequence[Batch],
    at_layer: Callable[[int, Batch, Tensor], None] | None,
    at_mlp: Callable[[int, Batch, Tensor], None] | None,
    counted: Callable[[], None],
) -> None:
    """Fill each layer before it is called, and tell what goes into it."""
    net.rotary_emb.to(how.device)
    scratch = Scratch()
    memory: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for number, layer in enumerate(net.layers):

        def before(layer: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], number: int = number) -> None:
            sources = _sources(dense, number, layer)
            # All layers lie in the same memory, one after the other: freed and taken anew, it would not come back.
            for name, source in sources.items():
                place = (name, source.shape)
                if place not in memory:
                    memory[place] = torch.empty(source.shape, dtype=how.torch_dtype, device=how.device)
                _fill(memory[place], source, scratch)
            layer.load_state_dict({name: memory[name, source.shape] for name, source in sources.items()}, assign=True)
            if at_layer:
                at_layer(number, now[0], inputs[0] if inputs else named["hidden_states"])

        def after(layer: Any, inputs: Any, output: Any) -> None:
            counted()

        def before_mlp(_: Any, inputs: tuple[Any, ...], number: int = number) -> None:
            if at_mlp:
                at_mlp(number, now[0], inputs[0])

        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after)
        layer.mlp.register_forward_pre_hook(before_mlp)


def _sources(dense: Dense, number: int, layer: Any) -> dict[str, TensorSource]:
    """Return where a layer's weights come from.

    Raises:
        IncompatibleModels: the model lacks one, or has it in another shape.
    """
    sources = {}
    for name, wanted in layer.state_dict().items():
        full = f"model.layers.{number}.{name}"
        source = dense.model.tensors.get(full)
        if source is None or source.shape != tuple(wanted.shape):
            found = "is missing" if source is None else f"is {source.shape}"
            raise IncompatibleModels(
                f"tensor {full!r} {found}, and a {dense.family} of this config.json has one of {tuple(wanted.shape)}",
                where=dense.model.label,
                right="config.json and weights of one model",
            )
        sources[name] = source
    return sources


def _fill(target: Tensor, source: TensorSource, scratch: Scratch) -> None:
    """Read a source into a tensor, a run at a time."""
    flat = target.view(-1)
    for start in range(0, flat.numel(), _RUN):
        stop = min(start + _RUN, flat.numel())
        flat[start:stop].copy_(source.read(start, stop, scratch, "fill"))
