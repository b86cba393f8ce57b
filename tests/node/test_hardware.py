import os
import stat

import psutil
import pytest

from node import hardware


def fake_smi(folder, script: str, monkeypatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_the_processor_is_described_without_a_gpu() -> None:
    found = await hardware.discover("cpu")
    assert found.device == "cpu"
    assert found.device_name
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 1 <= found.cpu_count <= psutil.cpu_count()


async def test_a_gpu_is_read_from_nvidia_smi(tmp_path, monkeypatch) -> None:
    fake_smi(tmp_path, "echo 'NVIDIA H100, 81559'; echo 'NVIDIA A10, 24564'", monkeypatch)
    first = await hardware.discover("auto")
    assert (first.device, first.device_name, first.memory_bytes) == ("cuda", "NVIDIA H100", 81559 * 1024 * 1024)
    second = await hardware.discover("cuda:1")
    assert second.device_name == "NVIDIA A10"
    assert (await hardware.discover("cpu")).device == "cpu"


@pytest.mark.parametrize("script", ["exit 9", "echo nonsense", "exec sleep 100"])
async def test_a_broken_driver_leaves_the_processor(tmp_path, monkeypatch, script: str) -> None:
    monkeypatch.setattr(hardware, "_SMI_LIMIT", 0.3)
    fake_smi(tmp_path, script, monkeypatch)
    assert (await hardware.discover("auto")).device == "cpu"


def test_lines_of_another_shape_are_skipped() -> None:
    assert hardware.parse_gpus("No devices were found\nA, [N/A]\nB, 10\n") == [("B", 10 * 1024 * 1024)]
