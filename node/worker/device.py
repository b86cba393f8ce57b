"""Where a model runs, in which number format, and with how much memory and how many threads."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mesh.errors import Misconfigured
from mesh.messages.worker import GpuStats
from node.worker.directory import tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from node.worker.directory import ModelDirectory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FEW_CORES = 4


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """For the node's record. `memory` in bytes, all of it."""

    device: torch.device
    name: str
    memory: int


def pick_device(name: str) -> DeviceInfo:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises Misconfigured."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return DeviceInfo(device=torch.device("cpu"), name=_cpu_name(), memory=_memory())
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise Misconfigured(f"--device {name} is not known; use auto, cpu or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        found = f"torch sees {count} of them" if count else "torch sees none (is it a CUDA build, and is the driver loaded?)"
        raise Misconfigured(f"--device {name} needs a CUDA device, but {found}; use --device auto or cpu")
    device = torch.device("cuda", int(index or 0))
    properties = torch.cuda.get_device_properties(device)
    return DeviceInfo(device=device, name=properties.name, memory=properties.total_memory)


def pick_dtype(name: str, directory: ModelDirectory, device: torch.device) -> torch.dtype:
    """What was asked for; `auto` is the checkpoint's own, or float32 where the device has no fast 16-bit arithmetic.

    `infermesh_dtype` in config.json says in which one a checkpoint is meant to be computed, and then decides for `auto`.
    """
    if name != "auto":
        return _named(name, "--dtype")
    meant = directory.config.get("infermesh_dtype")
    if meant is not None:
        return _named(str(meant), "infermesh_dtype in config.json")
    stored = _stored(directory)
    return stored if stored == torch.float32 or _fast(stored, device) else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _memory() // 2


def used_memory(device: torch.device) -> int:
    """Bytes that this process takes of the device; of the host's memory on the CPU. 0 where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether a computation failed for want of memory; the CPU's allocator has no exception type of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))


def gpu_stats(device: torch.device) -> GpuStats | None:
    """How busy an accelerator is; None for the CPU. Utilisation and temperature need NVIDIA's management library."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    used = (total - free) / 1e9
    try:
        utilization, temperature = float(torch.cuda.utilization(device)), float(torch.cuda.temperature(device))
    # ModuleNotFoundError without the library, RuntimeError and others where the driver refuses.
    except Exception:  # noqa: BLE001 - figures for a dashboard must not end anything
        return GpuStats(memory_used_gb=used, memory_total_gb=total / 1e9)
    return GpuStats(utilization_percent=utilization, memory_used_gb=used, memory_total_gb=total / 1e9, temperature_c=temperature)


def default_threads() -> int:
    """Threads for computing: the cores that this process may use, less one for the node where there are more than a few.

    On few cores every one counts and a niced worker leaves the node enough: it delays its loop by some milliseconds only.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, torch.get_num_threads())  # torch's own count leaves out hyperthreads
    return cores if cores <= FEW_CORES else cores - 1


def _named(name: str, where: str) -> torch.dtype:
    if name not in DTYPES:
        raise Misconfigured(f"{where}: {name} is not known; use {', '.join(DTYPES)}")
    return DTYPES[name]


def _stored(directory: ModelDirectory) -> torch.dtype:
    text: dict[str, Any] = directory.config.get("text_config") or {}
    for config in (directory.config, text):
        for key in ("dtype", "torch_dtype"):
            if config.get(key) in DTYPES:
                return DTYPES[config[key]]
    for tensor in tensors_of(directory.shards[0]).values():
        if tensor.get("dtype") in _STORED:
            return _STORED[tensor["dtype"]]
    return torch.float32


def _fast(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    features: Mapping[str, Any] = torch.cpu.get_capabilities()
    wanted = ("avx512_bf16", "amx_bf16", "bf16") if dtype == torch.bfloat16 else ("avx512_fp16", "amx_fp16", "fp16_arith")
    return any(features.get(feature) for feature in wanted)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
