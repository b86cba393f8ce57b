import json

import pytest

from mesh.http.keys import Keys

pytestmark = pytest.mark.usefixtures("own_environment")


def test_from_making_a_key_to_revoking_it(run, tmp_path):
    path = tmp_path / "keys.toml"
    at = ("--api-keys", str(path))
    code, key, said = run("keys", "add", "alice", *at)
    assert code == 0
    assert key.strip() not in said
    assert "'alice', good for infer" in said
    assert run("keys", "add", "root", "--scope", "admin", "--scope", "infer", *at)[0] == 0
    assert run("keys", "list", *at)[1].splitlines()[1:] == ["alice\tinfer", "root\tadmin, infer"]
    listed = json.loads(run("keys", "list", "--json", *at)[1])
    assert listed == {"keys": [{"name": "alice", "scopes": ["infer"]}, {"name": "root", "scopes": ["admin", "infer"]}]}
    code, out, said = run("keys", "revoke", "root", *at)
    assert (code, out) == (0, "")
    assert "'root' is revoked, 1 left" in said
    assert "none is left" in run("keys", "revoke", "alice", *at)[2]


def test_the_environment_names_the_file(run, tmp_path, monkeypatch):
    monkeypatch.setenv("INFERMESH_API_KEYS", str(tmp_path / "keys.toml"))
    assert run("keys", "add", "alice")[0] == 0
    Keys.read(tmp_path / "keys.toml")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["keys"], 2, "WHAT"),
        (["keys", "make"], 2, "invalid choice: 'make'"),
        (["keys", "list"], 2, "name the file of keys: --api-keys FILE, or INFERMESH_API_KEYS"),
        (["keys", "add", "a", "--scope", "root"], 2, "invalid choice: 'root'"),
        (["keys", "list", "--api-keys", "{}/none"], 2, "No such file"),
        (["keys", "revoke", "nobody", "--api-keys", "{}/keys.toml"], 1, "no key 'nobody'; there are: alice"),
        (["keys", "add", "alice", "--api-keys", "{}/keys.toml"], 1, "has a key 'alice' already"),
    ],
    ids=["nothing", "unknown", "no file", "no scope", "missing file", "unknown name", "taken name"],
)
def test_what_goes_wrong_is_one_line(run, tmp_path, argv, code, said):
    run("keys", "add", "alice", "--api-keys", str(tmp_path / "keys.toml"))
    got, out, err = run(*(word.format(tmp_path) for word in argv))
    assert (got, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
