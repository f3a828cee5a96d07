"""lm-evaluation-harness as a guest in this process: imported when it is needed, quiet, and with random draws of its own.

It seeds and draws from the generators of the process, prints bars and warnings, and asks the hub for data that the cache
has. A search that scores thousands of candidates can have none of that.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from cuvee.errors import ResourceError

__all__ = ["SEED", "hub_answers", "import_lm_eval", "own_draws", "quietly", "without_hub"]

SEED = 1234
"""Of few-shot examples and draws: the harness's own."""
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "evaluate", "accelerate")
_MOST_WARNINGS = 1000
_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")


def import_lm_eval() -> Any:
    """Import lm_eval with what it needs to score models of transformers, and return it.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        with quietly():
            import lm_eval
            import lm_eval.api.task
            import lm_eval.evaluator
            import lm_eval.models.huggingface
            import lm_eval.tasks
    except ImportError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise ResourceError(
            f"scoring on tasks of lm-evaluation-harness needs {missing}, which is not installed",
            right="pip install 'cuvee[eval]'; without it --tasks takes our suites: cuvee bench build lists them",
        ) from None
    return lm_eval


@contextmanager
def quietly() -> Iterator[list[str]]:
    """Keep the harness and the libraries under it from printing bars and warnings; yield what the harness warned of."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    modules = [sys.modules[name] for name in _WITH_BARS if name in sys.modules]
    bars = [vars(module)["tqdm"] for module in modules]
    if (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.disable_progress_bars()
    listener = _Listener()
    loggers[0].addHandler(listener)
    for logger in loggers:
        logger.setLevel(logging.WARNING if logger is loggers[0] else logging.CRITICAL)
        logger.propagate = False
    for module in modules:
        vars(module)["tqdm"] = _no_bar
    try:
        yield listener.said
    finally:
        loggers[0].removeHandler(listener)
        for logger, (level, propagates) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagates
        for module, bar in zip(modules, bars, strict=True):
            vars(module)["tqdm"] = bar


class _Listener(logging.Handler):
    """Keeps the first warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one in."""
        if len(self.said) < _MOST_WARNINGS:
            self.said.append(record.getMessage())


class _NoBar:
    """What stands in for a bar of tqdm."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def update(self, _: int = 1) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to close."""


def _no_bar(items: Any = (), **_: Any) -> _NoBar:
    return _NoBar(items)


@contextmanager
def own_draws() -> Iterator[None]:
    """Give what runs inside its own draws, the same each time, and the process its generators back as they were."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


@contextmanager
def without_hub() -> Iterator[None]:
    """Let the libraries of Hugging Face see only what is in their caches."""
    places = [("huggingface_hub.constants", "HF_HUB_OFFLINE")]
    places += [("datasets.config", name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")]
    found = [(importlib.import_module(module), name) for module, name in places]
    before = [getattr(module, name) for module, name in found]
    try:
        for module, name in found:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(found, before, strict=True):
            setattr(module, name, value)


def hub_answers() -> bool:
    """Return whether the hub's name is known here: where it is not, libraries would ask for half a minute."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname or ""
    with suppress(OSError):
        return bool(socket.getaddrinfo(host, 443))
    return False
