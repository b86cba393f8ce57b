import fcntl
import hashlib
import os
import stat

import pytest

from bootstrap.api_keys import MAX_FILE, KeyFile
from mesh.errors import Conflict, Misconfigured, NotFound
from mesh.http import Request
from mesh.http.keys import Keys


def shown(key):
    return Request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


@pytest.fixture
def file(path):
    return KeyFile(path)


def names(file):
    return [caller.name for caller in file.callers()]


def test_a_key_that_was_made_lets_in_and_the_file_does_not_know_it(file, path):
    key = file.add("alice", ["infer", "admin"])
    other = file.add("bob", ["infer"])
    assert key != other
    assert len(key) > 40
    keys = Keys.read(path)
    assert keys.require(shown(key), "admin").name == "alice"
    assert keys.caller(shown(other)).scopes == ("infer",)
    assert key not in path.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()


def test_the_file_is_for_its_owner_alone_and_nothing_lies_about(file, path):
    file.add("alice", ["infer"])
    path.chmod(0o644)
    file.add("bob", ["infer"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_stands_beside_stays(file, path):
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in "abc"]
    path.write_text(
        "# Who may ask.\n"
        f'[[key]]  # the first\nname = "a"\nhash = "{digests[0]}"\n\n'
        "# The second one.\n"
        f'[[ key ]]\n# of the laptop\nname = "b"\nhash = "{digests[1]}"\nscopes = [\n  "infer",\n]\n\n'
        f'# The last.\n[["key"]]\nname = "c"  # short\nhash = "{digests[2]}"\n# The end.\n'
    )
    before = path.read_text()
    file.add('say "d" \\ ', ["admin"])
    assert path.read_text().startswith(before.rstrip())
    assert names(file) == ["a", "b", "c", 'say "d" \\ ']
    assert file.revoke("b") == 3
    text = path.read_text()
    assert names(file) == ["a", "c", 'say "d" \\ ']
    for comment in (
        "# Who may ask.",
        "# the first",
        "# The second one.",
        "# of the laptop",
        "# The last.",
        "# short",
        "# The end.",
    ):
        assert comment in text
    file.revoke("c")
    assert "# short" not in path.read_text(), "it stood beside what is gone"
    assert "# The end." in path.read_text()


def test_the_last_key_can_go_and_another_one_come(file, path):
    file.add("a", ["infer"])
    assert file.revoke("a") == 0
    assert names(file) == []
    with pytest.raises(Misconfigured, match="mesh keys add"):
        Keys.read(path)
    file.add("b", ["infer"])
    assert names(file) == ["b"]


def test_a_name_is_taken_once_and_must_be_there_to_be_revoked(file):
    file.add("a", ["infer"])
    with pytest.raises(Conflict, match="'a' already"):
        file.add("a", ["infer"])
    with pytest.raises(NotFound, match="no key 'b'; there are: a"):
        file.revoke("b")


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\udcff"], ids=["none", "long", "two lines", "no text"])
def test_what_is_no_name_makes_no_file(file, path, name):
    with pytest.raises(Misconfigured, match="is not a name"):
        file.add(name, ["infer"])
    assert not path.exists()


HASHES = [hashlib.sha256(text).hexdigest() for text in (b"a", b"b")]
INLINE = f'key = [{{name = "a", hash = "{HASHES[0]}"}}, {{name = "b", hash = "{HASHES[1]}"}}]\n'


def test_a_file_that_is_written_in_another_way_is_refused_and_not_touched(file, path):
    path.write_text(INLINE)
    for change in (lambda: file.add("c", ["infer"]), lambda: file.revoke("a")):
        with pytest.raises(Misconfigured, match=r"cannot change; write its keys as \[\[key\]\] tables"):
            change()
    assert path.read_text() == INLINE


@pytest.mark.parametrize("text", ["a = ", "[[keys]]\n", "\xff"], ids=["no TOML", "another table", "no UTF-8"])
def test_a_file_that_is_none_of_keys_is_refused_and_not_touched(file, path, text):
    path.write_bytes(text.encode("latin-1"))
    for act in (file.callers, lambda: file.add("c", ["infer"]), lambda: file.revoke("a")):
        with pytest.raises(Misconfigured, match=r"keys\.toml"):
            act()
    assert path.read_bytes() == text.encode("latin-1")


def test_only_so_much_is_read(file, path):
    with path.open("wb") as opened:
        opened.truncate(MAX_FILE + 1)
    with pytest.raises(Misconfigured, match="is larger than"):
        file.callers()


def test_a_missing_file_is_made_only_for_a_new_key(file, tmp_path):
    for act in (file.callers, lambda: file.revoke("a")):
        with pytest.raises(Misconfigured, match="No such file"):
            act()
    with pytest.raises(Misconfigured, match="cannot use the folder"):
        KeyFile(tmp_path / "nowhere" / "keys.toml").add("a", ["infer"])


def test_two_changes_at_once_take_turns(file, path):
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="try again"):
        file.add("a", ["infer"])
    os.close(folder)
    file.add("a", ["infer"])


def test_a_link_to_the_file_stays_one(file, path, tmp_path):
    file.add("a", ["infer"])
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    KeyFile(link).add("b", ["infer"])
    assert link.is_symlink()
    assert names(file) == ["a", "b"]


def test_a_disk_that_fails_leaves_the_file_as_it_was(file, path, monkeypatch):
    file.add("a", ["infer"])
    before = path.read_text()

    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Misconfigured, match="No space left on device"):
        file.add("b", ["infer"])
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]
