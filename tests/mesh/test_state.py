import sys
from pathlib import Path

import pytest

from mesh.errors import Misconfigured
from mesh.state import StateFolder, default_state_dir


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are Linux's")
def test_default_folder(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/states")
    assert default_state_dir("node") == Path("/states/infermesh/node")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert default_state_dir("node") == Path.home() / ".local/state/infermesh/node"


def test_a_second_holder_is_refused_and_the_lock_is_free_afterwards(tmp_path):
    with StateFolder(tmp_path / "a"), pytest.raises(Misconfigured, match="is in use by process"), StateFolder(tmp_path / "a"):
        pass
    with StateFolder(tmp_path / "a"):
        pass


def test_the_addresses_are_replaced_whole_and_removed(tmp_path):
    with StateFolder(tmp_path) as folder:
        folder.write_addresses({"addresses": ["a" * 1000]})
        folder.write_addresses({"addresses": []})
        assert (tmp_path / "addresses.json").read_text() == '{\n  "addresses": []\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_a_disk_that_fails_stops_nothing(tmp_path, monkeypatch, caplog):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with StateFolder(tmp_path) as folder:
        monkeypatch.setattr(Path, "replace", full)
        folder.write_addresses({"addresses": [], "pid": 1})
        assert "cannot write the live addresses" in caplog.text
        with pytest.raises(Misconfigured, match="in use by process unknown"), StateFolder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
