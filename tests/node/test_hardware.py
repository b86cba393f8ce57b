import json
import os
import stat

import psutil
import pytest

from node import gpus, hardware

NVIDIA = "echo 'GPU-aa11, NVIDIA H100, 81559'; echo 'GPU-bb22, NVIDIA A10, 24564'"
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def nothing_visible_is_said(monkeypatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a program of a vendor on the path, in front of a real one."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    make("nvidia-smi", "exit 9")
    make("rocm-smi", "exit 9")
    return make


async def test_the_processor_is_described_without_a_gpu() -> None:
    found = await hardware.discover("cpu")
    assert found.device == "cpu"
    assert found.device_name
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 1 <= found.cpu_count <= psutil.cpu_count()


async def test_a_gpu_is_read_from_nvidia_smi(tool) -> None:
    tool("nvidia-smi", NVIDIA)
    first = await hardware.discover("auto")
    assert (first.device, first.device_name, first.memory_bytes) == ("cuda", "NVIDIA H100", 81559 * MIB)
    second = await hardware.discover("cuda:1")
    assert second.device_name == "NVIDIA A10"
    both = await hardware.discover("all")
    assert (both.device_count, both.memory_bytes) == (2, (81559 + 24564) * MIB)
    assert (await hardware.discover("cpu")).device == "cpu"


async def test_a_gpu_is_read_from_rocm_smi(tool) -> None:
    card = {"Card Series": "AMD Instinct MI300X", "VRAM Total Memory (B)": "206141652992", "Unique ID": "0x1234"}
    report = {"card10": {**card, "Card Series": "the last"}, "card2": card, "system": {"Driver version": "6"}, "card3": {}}
    tool("rocm-smi", f"echo '{json.dumps(report)}'")
    found = await hardware.discover("all")
    assert (found.device, found.device_name, found.device_count) == ("rocm", "AMD Instinct MI300X", 2)
    assert found.memory_bytes == 2 * 206141652992
    hidden = await hardware.discover("all", {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"})
    assert hidden.device_name == "the last"


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("1", ["NVIDIA A10"]),
        ("1,0", ["NVIDIA A10", "NVIDIA H100"]),
        ("GPU-bb", ["NVIDIA A10"]),
        ("0,7,1", ["NVIDIA H100"]),
        ("", []),
        ("-1", []),
    ],
)
async def test_what_is_hidden_from_programs_is_hidden_here(tool, setting: str, names: list[str]) -> None:
    tool("nvidia-smi", NVIDIA)
    assert [gpu.name for gpu in await gpus.find_gpus({"CUDA_VISIBLE_DEVICES": setting})] == names
    found = await hardware.discover("auto", {"CUDA_VISIBLE_DEVICES": setting})
    assert (found.device, found.device_count) == ("cuda" if names else "cpu", 1)


async def test_our_own_environment_counts_when_no_other_is_given(tool, monkeypatch) -> None:
    tool("nvidia-smi", NVIDIA)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (await hardware.discover("cuda:0")).device_name == "NVIDIA A10"


async def test_an_apple_processor_is_a_gpu_itself(tool, monkeypatch) -> None:
    monkeypatch.setattr(gpus.sys, "platform", "darwin")
    monkeypatch.setattr(gpus.platform, "machine", lambda: "arm64")
    found = await hardware.discover("auto")
    assert (found.device, found.device_count, found.memory_bytes) == ("mps", 1, psutil.virtual_memory().total)


@pytest.mark.parametrize("script", ["exit 9", "echo nonsense", "exec sleep 100"])
@pytest.mark.parametrize("name", ["nvidia-smi", "rocm-smi"])
async def test_a_broken_driver_leaves_the_processor(tool, monkeypatch, name: str, script: str) -> None:
    monkeypatch.setattr(gpus, "TOOL_LIMIT", 0.3)
    tool(name, script)
    assert (await hardware.discover("auto")).device == "cpu"


def test_lines_of_another_shape_are_skipped() -> None:
    (found,) = gpus.nvidia_gpus("No devices were found\nGPU-a, A, [N/A]\nGPU-b, B, 10\n")
    assert (found.id, found.name, found.memory) == ("GPU-b", "B", 10 * MIB)


async def test_what_nobody_has_of_a_gpu_is_asked_of_the_same_tools(tool) -> None:
    assert await gpus.free_memory(environment={}) is None
    tool("nvidia-smi", 'case "$*" in *memory.free*) echo "GPU-a, A, 100"; echo "GPU-b, B, 50";; *) exit 9;; esac')
    assert await gpus.free_memory("auto", {}) == 100 * MIB
    assert await gpus.free_memory("cuda:1", {}) == 50 * MIB
    assert await gpus.free_memory("all", {}) == 150 * MIB
    assert await gpus.free_memory("auto", {"CUDA_VISIBLE_DEVICES": "1"}) == 50 * MIB
    tool("nvidia-smi", "exit 9")
    card = {"Card Series": "A", "VRAM Total Memory (B)": "100", "VRAM Total Used Memory (B)": "30"}
    tool("rocm-smi", f"echo '{json.dumps({'card0': card, 'card1': {'VRAM Total Memory (B)': '100'}})}'")
    assert await gpus.free_memory("all", {}) == 70
