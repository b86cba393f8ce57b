"""Devices, number formats and threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mesh.errors import Misconfigured
from node.worker import device
from node.worker.device import default_threads, free_memory, pick_device, pick_dtype
from node.worker.directory import open_directory

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


def directory(models_folder: Path, **config: Any) -> Any:
    opened = open_directory(models_folder / "llama")
    return SimpleNamespace(config={**config}, shards=opened.shards)


def test_cpu_is_described() -> None:
    picked = pick_device("cpu")
    assert picked.device == CPU
    assert picked.name
    assert picked.memory > free_memory(CPU) > 0


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "", "cuda:99"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match="--device"):
        pick_device(name)


def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="GPU", total_memory=5))
    assert pick_device("auto").device == torch.device("cuda", 0)
    assert pick_device("cuda:1").device == torch.device("cuda", 1)
    with pytest.raises(Misconfigured, match="torch sees 2"):
        pick_device("cuda:2")


def test_dtype_auto(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def auto(**config: Any) -> torch.dtype:
        return pick_dtype("auto", directory(models_folder, **config), CPU)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert auto() == torch.float32  # the tensors' own
    assert auto(dtype="bfloat16") == torch.bfloat16
    assert auto(torch_dtype="bfloat16") == torch.bfloat16
    assert auto(text_config={"dtype": "bfloat16"}) == torch.bfloat16
    assert auto(dtype="float16") == torch.float32
    assert auto(dtype="bfloat16", infermesh_dtype="float32") == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert auto(dtype="bfloat16") == torch.float32


def test_dtype_as_told(models_folder: Path) -> None:
    told = directory(models_folder, infermesh_dtype="float32", dtype="float32")
    assert pick_dtype("bfloat16", told, CPU) == torch.bfloat16
    with pytest.raises(Misconfigured, match="--dtype"):
        pick_dtype("int3", told, CPU)
    with pytest.raises(Misconfigured, match="infermesh_dtype"):
        pick_dtype("auto", directory(models_folder, infermesh_dtype="int3"), CPU)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (5, 4), (32, 31)])
def test_threads_leave_the_node_a_core_where_there_are_many(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert default_threads() == threads
