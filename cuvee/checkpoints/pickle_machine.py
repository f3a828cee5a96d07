"""What a pickle of tensors says, without running it: a machine for the pickles that `torch.save` writes.

`pickle.load` runs what the file tells it to, and even torch's weights-only unpickler lets a file allocate what it
likes. This machine imports and calls nothing: it knows the few functions that state dicts are made of by name, and
turns their calls into records. Whatever else a file names is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import CheckpointError, printable
from cuvee.tensors.dtypes import DTYPES, DType

__all__ = ["Group", "Opaque", "PickledStorage", "PickledTensor", "run_pickle"]

MAX_OPERATIONS = 4_000_000  # about 125,000 tensors; bounds the memory and the time of a hostile file


@dataclass(frozen=True)
class PickledStorage:
    """A run of bytes in the archive: `data/<key>`, of `numel` elements."""

    key: str
    dtype: DType | None
    numel: int


@dataclass(frozen=True)
class PickledTensor:
    """A view of a storage; offset and strides in elements. `kind` is empty, or says why it cannot be read."""

    storage: PickledStorage | None
    dtype: DType | None
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    kind: str = ""


@dataclass
class Group:
    """A dict, ordered or not. Only text keys are kept."""

    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opaque:
    """A value that is no tensor: `what` names its kind."""

    what: str


@dataclass(frozen=True)
class _Name:
    """A function or a class that the pickle names; nothing was imported."""

    path: str


_MARK = object()
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_OTHER_STORAGES = ("ComplexDoubleStorage", "QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage",
                   "QUInt2x4Storage")  # fmt: skip
_TWINS = {row.torch: row for row in DTYPES.values() if row.torch}
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "without data (on the meta device)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
}
# plain values that training scripts put beside the weights
_PLAIN = frozenset({
    "_codecs.encode", "argparse.Namespace", "builtins.bytearray", "builtins.complex", "builtins.set",
    "collections.Counter", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype",
    "pathlib.PosixPath", "torch.device", "torch.serialization._get_layout",
})  # fmt: skip
_SCHEMES = frozenset({
    "torch.per_channel_affine", "torch.per_channel_affine_float_qparams", "torch.per_channel_symmetric",
    "torch.per_tensor_affine", "torch.per_tensor_symmetric",
})  # fmt: skip
_DICTS = frozenset({"collections.OrderedDict", "collections.defaultdict", "builtins.dict"})
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def run_pickle(text: bytes) -> Any:
    """Return what a pickle describes, made of `Group`, `PickledTensor`, `Opaque`, lists, tuples and plain values.

    Raises:
        CheckpointError: it is malformed, too long, or would run code when loaded.
    """
    machine = _Machine()
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(io.BytesIO(text))):
            if count >= MAX_OPERATIONS:
                raise CheckpointError(f"the pickle has more than {MAX_OPERATIONS} steps")
            machine.step(op.name, arg)
        return machine.result
    except CheckpointError:
        raise
    except (IndexError, KeyError):
        raise CheckpointError("the pickle is malformed: it takes what it has not put there") from None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"the pickle is malformed: {printable(str(error))[:200]}") from None


class _Machine:
    """The stack, the memo and one method a kind of step."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, arg: Any) -> None:
        known = _STEPS.get(name)
        if known is None:
            raise ValueError(f"step {name} does not belong in a saved state dict")
        known(self, arg)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def stop(self, _: Any) -> None:
        self.result = self.pop()

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def skip(self, _: Any) -> None:
        pass

    def drop(self, _: Any) -> None:
        self.stack.pop()

    def drop_to_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def dict_to_mark(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.stack.append(Group())
        self._fill(values)

    def append(self, _: Any) -> None:
        value = self.pop()
        self._extend([value])

    def appends(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def add_items(self, _: Any) -> None:
        self.pop_to_mark()
        self.top()

    def _extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise ValueError("items are added to what is no list")

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self.pop_to_mark())

    def _fill(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise ValueError("a key has no value")
        if isinstance(target, Opaque):
            return
        if not isinstance(target, Group):
            raise ValueError("items are set in what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # keys that are not text never name a tensor; they are not even hashed
            target.items[key if isinstance(key, str) else f"({type(key).__name__})"] = value

    def name(self, arg: str) -> None:
        module, _, attribute = arg.partition(" ")
        self._push_name(module, attribute)

    def name_from_stack(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name is not text")
        self._push_name(module, attribute)

    def _push_name(self, module: str, attribute: str) -> None:
        name = _Name(f"{_PYTHON_2.get(module, module)}.{attribute}")
        if not _is_known(name.path):
            raise CheckpointError(
                f"the pickle names {printable(name.path)[:200]!r}: to load it would run code, so it was not loaded",
                right="get the model as safetensors; or, where you trust the file, load it and save the weights alone: "
                "torch.save(model.state_dict(), OTHER)",
            )
        self.stack.append(name)

    def call(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(args, tuple):
            raise ValueError("a call of what is no function")
        self.stack.append(_call(function.path, args))

    def call_with_keywords(self, _: Any) -> None:
        self.pop()
        self.call(None)

    def build(self, _: Any) -> None:
        """Attributes of an object (the `_metadata` of a state dict) carry no weights."""
        self.pop()
        self.top()

    def storage(self, _: Any) -> None:
        identity = self.pop()
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] not in ("storage", b"storage"):
            raise ValueError("a storage is named in an unknown way")
        _, kind, key, _, numel = identity
        if not isinstance(kind, _Name) or not isinstance(key, str) or not _is_count(numel):
            raise ValueError("a storage is named in an unknown way")
        self.stack.append(PickledStorage(key, _storage_dtype(kind.path), numel))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_known(path: str) -> bool:
    package, _, attribute = path.rpartition(".")
    return (
        path in _TENSORS
        or path in _OTHER_TENSORS
        or path in _PLAIN
        or path in _SCHEMES
        or path in _DICTS
        or (package == "torch" and (attribute in _STORAGES or attribute in _OTHER_STORAGES or attribute in _TWINS))
        or path in ("torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch.Size", "torch.Tensor")
        or path in ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    )


def _storage_dtype(path: str) -> DType | None:
    """Return the dtype of a storage class; `U8` for raw bytes, None for those that safetensors does not have."""
    attribute = path.rpartition(".")[2]
    if attribute == "UntypedStorage":
        return DTYPES["U8"]
    if attribute not in _STORAGES and attribute not in _OTHER_STORAGES:
        raise ValueError(f"{path} is no kind of storage")
    return DTYPES[_STORAGES[attribute]] if attribute in _STORAGES else None


def _call(path: str, args: tuple[Any, ...]) -> Any:
    if path in _TENSORS:
        return _TENSORS[path](*args)
    if path in _OTHER_TENSORS:
        return PickledTensor(None, None, 0, (), (), _OTHER_TENSORS[path])
    if path in _DICTS:
        return _dict(args[-1] if args else ())
    if path == "torch.Size":
        return args[0] if args else ()
    if path in _PLAIN:
        return Opaque(path)
    raise ValueError(f"a call of {path}")


def _dict(pairs: Any) -> Group:
    if isinstance(pairs, Group):
        return Group(dict(pairs.items))
    if not isinstance(pairs, list | tuple):
        return Group()
    return Group({key: value for key, value in pairs if isinstance(key, str)})


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: DType | None = None) -> PickledTensor:
    if not isinstance(storage, PickledStorage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor is described in an unknown way")
    if len(shape) != len(stride) or not all(map(_is_count, (offset, *shape, *stride))):
        raise ValueError("a tensor's shape, strides and offset must be whole numbers")
    return PickledTensor(storage, dtype or storage.dtype, offset, shape, stride)


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    flags = rest[2] if len(rest) > 2 else None
    tensor = _tensor(storage, offset, shape, stride)
    if isinstance(flags, Group) and any(value is True for value in flags.items.values()):
        return PickledTensor(None, None, 0, (), (), "conjugated or negated in place")
    return tensor


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    name = rest[2]
    if not isinstance(name, _Name):
        raise ValueError("a tensor has no dtype")
    dtype = _TWINS.get(name.path.removeprefix("torch."))
    if dtype is None:
        return PickledTensor(None, None, 0, (), (), f"of dtype {name.path}")
    return _tensor(storage, offset, shape, stride, dtype=dtype)


def _wrapped(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(args, tuple):
        raise ValueError("a tensor is described in an unknown way")
    return _call(function.path, args)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _wrapped,
    "torch._utils._rebuild_parameter_with_state": _wrapped,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    "NONE": lambda m, _: m.push(None), "NEWTRUE": lambda m, _: m.push(True), "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()), "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push(Group()), "EMPTY_SET": lambda m, _: m.push(Opaque("builtins.set")),
    "PROTO": _Machine.skip, "FRAME": _Machine.skip,
    "STOP": _Machine.stop, "MARK": _Machine.mark, "POP": _Machine.drop, "POP_MARK": _Machine.drop_to_mark,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put, "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_to_mark, "LIST": _Machine.list_to_mark, "DICT": _Machine.dict_to_mark,
    "TUPLE1": lambda m, _: m.tuple_of(1), "TUPLE2": lambda m, _: m.tuple_of(2), "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": _Machine.append, "APPENDS": _Machine.appends, "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call, "NEWOBJ": _Machine.call, "NEWOBJ_EX": _Machine.call_with_keywords,
    "BUILD": _Machine.build, "BINPERSID": _Machine.storage,
}  # fmt: skip
