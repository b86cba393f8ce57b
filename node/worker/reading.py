"""A model directory's tokenizer and weights, complete or not at all.

1. Everything that is wrong with them is `Misconfigured`: restarting would not help.
2. A checkpoint that lacks a tensor is refused: transformers would fill it with noise and go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mesh.errors import Misconfigured
from mesh.messages.worker import Loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from node.worker.device import DeviceInfo
    from node.worker.directory import ModelDirectory


def read_tokenizer(directory: ModelDirectory) -> Any:
    """The model's tokenizer. Raises Misconfigured."""
    try:
        return AutoTokenizer.from_pretrained(directory.path, local_files_only=True, trust_remote_code=False)
    # Whatever the library raises here, it is about these files.
    except Exception as error:
        raise Misconfigured(
            f"the tokenizer of {directory.path} cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            "copy the model's tokenizer files into it again"
        ) from error


def read_model(
    directory: ModelDirectory,
    dtype: torch.dtype,
    device: DeviceInfo,
    report: Callable[[Loading], None],
    *,
    kind: Any = AutoModelForCausalLM,
    spare: str = "",
) -> Any:
    """The model, complete. `kind` makes it; tensors whose names have `spare` in them may be missing. Raises Misconfigured."""
    previous = transformers_logging.set_tqdm_hook(_progress(report))
    try:
        config = AutoConfig.from_pretrained(directory.path, local_files_only=True, trust_remote_code=False)
        model, info = kind.from_pretrained(
            directory.path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        model = model.eval().to(device.device)
    except torch.OutOfMemoryError as error:
        raise Misconfigured(
            f"the model does not fit into the memory of {device.name}; use a smaller one or --device cpu"
        ) from error
    except Exception as error:
        raise Misconfigured(f"the model in {directory.path} cannot be loaded: {first_line(error)}") from error
    finally:
        transformers_logging.set_tqdm_hook(previous)
    if missing := sorted(name for name in info["missing_keys"] if not (spare and spare in name)):
        raise Misconfigured(
            f"the weights in {directory.path} lack {len(missing)} tensors (the first is {missing[0]}); fetch the model again"
        )
    if misfits := sorted(str(name) for name, *_ in info["mismatched_keys"]):
        raise Misconfigured(
            f"the weights in {directory.path} do not fit its config.json ({misfits[0]} has another shape); "
            "fetch both from the same model"
        )
    return model


def _progress(report: Callable[[Loading], None]) -> Callable[..., Any]:
    """A hook for transformers' progress bars that reports at most a hundred times."""

    def hook(factory: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        if not args or not hasattr(args[0], "__len__"):
            return factory(*args, **{**arguments, "disable": True})
        return _Bar(args[0], report)

    return hook


class _Bar:
    """Stands in for a tqdm bar over a collection; its other methods do nothing."""

    def __init__(self, items: Any, report: Callable[[Loading], None]) -> None:
        self._items = items
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items)
        for done, item in enumerate(self._items):
            if done % max(1, total // 100) == 0:
                self._report(Loading(done=done, total=total, phase="weights"))
            yield item
        self._report(Loading(done=total, total=total, phase="weights"))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def first_line(error: BaseException) -> str:
    """What an error says first, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
