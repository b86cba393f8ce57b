import pytest

from mesh.config import load
from mesh.errors import Misconfigured
from node.backends.plan import plan
from node.config import NodeConfig


def read(folder, text: str, *flags: str, **environ: str):
    file = folder / "node.toml"
    file.write_text(text)
    return plan(load(NodeConfig, ["--config-file", str(file), *flags], environ, program="mesh-node", description=""))


def refusal(*args, **environ) -> str:
    with pytest.raises(Misconfigured) as caught:
        read(*args, **environ)
    assert "\n" not in caught.value.message
    return caught.value.message


def mocks(*ports: int | None) -> str:
    lines = []
    for index, port in enumerate(ports):
        lines += ["[[backend]]", 'type = "mock"', f'models = ["m{index}"]', *([f"port = {port}"] if port is not None else [])]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("ports", "planned"),
    [
        ([None], [8100]),
        ([None, None, None], [8100, 8102, 8104]),
        ([None, 8102, None], [8100, 8102, 8104]),
        ([9000, None, None], [9000, 8102, 8104]),
        ([None, 0], [8100, 0]),
        ([None, 8103, None], [8100, 8103, 8106]),
    ],
)
def test_ports_go_in_steps_of_two_around_those_that_are_given(tmp_path, ports, planned):
    assert [unit.port for unit in read(tmp_path, mocks(*ports))] == planned


def test_port_0_is_a_free_pair_for_each(tmp_path):
    assert [unit.port for unit in read(tmp_path, mocks(None, None), "--port", "0")] == [0, 0]


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (mocks(8100, 8101), [], "port 8101 is P of [[backend]] mock-2 and P+1 of [[backend]] mock as well"),
        (mocks(None, 8100), [], "port 8100 is P of [[backend]] mock-2 and P of [[backend]] mock"),
        (mocks(None), ["--listen", "/ip4/0.0.0.0/tcp/8101"], "port 8101 is P+1 of [[backend]] mock and --listen /ip4"),
        (mocks(None, None), ["--port", "65534"], "no ports left above 65534"),
    ],
    ids=["P and P+1", "P and P", "libp2p", "no room"],
)
def test_a_clash_names_both_owners(tmp_path, text, flags, said):
    assert said in refusal(tmp_path, text, *flags)


def test_names(tmp_path):
    text = '[[backend]]\ntype = "mock"\n[[backend]]\ntype = "Mock"\n[[backend]]\ntype = "mock"\nid = "third"\n'
    assert [unit.id for unit in read(tmp_path, text)] == ["mock", "mock-2", "third"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[backend]\ntype = "magic"\n', "line 2, backend.type: 'magic' is not a service type; give torch, mock, command"),
        ('[backend]\ntpye = "mock"\n', "line 2: unknown key 'tpye'; did you mean type?"),
        ('\n[[backend]]\ntype = "mock"\n[[backend]]\nwrok_dir = "/"\n', "line 5: unknown key 'wrok_dir'; did you mean work_dir?"),
        ('[backend]\ntype = "mock"\ncommand = "x"\n', "backend.command: the type mock has no use for command"),
        ('[backend]\ntype = "mock"\ngrace = "x"\n', "line 3, backend.grace: 'x' is not valid; give a number over 0"),
        ('[backend]\ntype = "mock"\nargs = 3\n', "line 3, backend.args: 3 is not valid; give text"),
        ('[backend]\ntype = "mock"\nmodels = ["a", "b"]\naliases = ["c"]\n', "aliases is about the only model"),
        ("backend = 3\n", "line 1: backend must be a table; write [backend]"),
        ("[babysitter]\nmax_restart = 3\n", "line 2: unknown key 'max_restart'; did you mean max_restarts?"),
        ("max_restarts = 1\n[babysitter]\nmax_restarts = 2\n", "max_restarts is given twice"),
        (
            '[[backend]]\ntype = "mock"\nmodels = ["a"]\n[[backend]]\ntype = "cli"\nmodels = ["b", "a"]\n',
            "line 4, backend.models: the model 'a' is in",
        ),
        (
            '[[backend]]\ntype = "mock"\nid = "x"\n[[backend]]\ntype = "mock"\nid = "x"\n',
            "there is another backend 'x'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(tmp_path, text, said):
    message = refusal(tmp_path, text)
    assert said in message
    assert str(tmp_path / "node.toml") in message


def test_flags_about_one_backend_are_refused_when_there_are_several(tmp_path):
    assert "--args is about the only [backend], and the file has 2" in refusal(tmp_path, mocks(None, None), "--args", "x")
    assert "INFERMESH_BACKEND_GRACE is about" in refusal(tmp_path, mocks(None, None), INFERMESH_BACKEND_GRACE="3")


def test_the_babysitters_keys_also_stand_by_themselves_and_are_beaten_by_flags(tmp_path):
    (unit,) = read(tmp_path, "[babysitter]\nrestart_delay = 3\nmax_restarts = 7\n")
    assert (unit.restarts.delay, unit.restarts.limit) == (3, 7)
    (unit,) = read(tmp_path, "restart_delay = 3\n[babysitter]\nmax_restarts = 7\n", "--max-restarts", "9")
    assert (unit.restarts.delay, unit.restarts.limit) == (3, 9)
    (unit,) = read(tmp_path, '[babysitter]\nmax_restarts = 7\n[backend]\ntype = "command"\nmax_restarts = 2\n')
    assert unit.restarts.limit == 2


def test_the_same_as_json(tmp_path):
    file = tmp_path / "node.json"
    file.write_text('{"port": 9000,\n "backend": [\n  {"type": "mock", "models": ["a"]},\n  {"type": "mock", "modles": []}]}')
    with pytest.raises(Misconfigured, match=r"line 4: unknown key 'modles'; did you mean models\?"):
        load(NodeConfig, ["--config-file", str(file)], {}, program="mesh-node", description="")
