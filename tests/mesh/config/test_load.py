import itertools
import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from mesh.config import CommonConfig, Option, load
from mesh.config.schema import keys_of
from mesh.errors import Misconfigured
from mesh.identity import Identity

PEER_IDS = [Identity.from_seed(bytes([i]) * 32).peer_id for i in range(3)]
PEERS = [f"/ip4/192.0.2.{i}/tcp/4001/p2p/{peer_id}" for i, peer_id in enumerate(PEER_IDS)]


class EveryShape(CommonConfig, frozen=True, kw_only=True):
    """All key shapes that a role may use."""

    port: Annotated[
        int, msgspec.Meta(ge=0, le=65535), Option(help="A port.", environment=("HF_SERVER_PORT", "PORT"), metavar="PORT")
    ] = 8100
    model: Annotated[dict[str, str], Option(help="A model.", metavar="ID=PATH")] = msgspec.field(default_factory=dict)
    device: Annotated[str | None, Option(help="A device.")] = None
    dtype: Annotated[Literal["auto", "float32"], Option(help="A type.", flag="--data-type")] = "auto"
    weights: Annotated[list[int], Option(help="Weights.")] = msgspec.field(default_factory=list)
    token: Annotated[str, msgspec.Meta(max_length=5), Option(help="A token.", secret=True)] = ""


# Per key three values that differ from each other and from the default, as a file gives them.
VALUES = {
    "bootstrap": [[PEERS[0]], [PEERS[1], PEERS[2]], PEERS],
    "listen": [["/ip4/127.0.0.1/tcp/1"], ["/ip4/127.0.0.1/tcp/2", "/ip6/::1/tcp/3/ws"], ["/ip4/127.0.0.1/tcp/3"]],
    "mdns": [False, False, False],
    "direct": [False, False, False],
    "dht": [False, False, False],
    "relay": [True, False, True],
    "relay_circuits": [1, 2, 3],
    "relay_rate": [1000, 2000, 3000],
    "relay_total": [1000, 2000, 3000],
    "mesh": ["a", "b", "c"],
    "name": ["a", "b", "c"],
    "state_dir": ["/a", "/b", "/c"],
    "drain_timeout": [1.5, 2, 3],
    "log_format": ["json", "json", "json"],
    "log_level": ["debug", "warning,mesh.link=debug", "error"],
    "private": [True, True, True],
    "allow_peer": [[PEER_IDS[0]], PEER_IDS[1:], [PEER_IDS[2]]],
    "deny_peer": [[PEER_IDS[0]], PEER_IDS[1:], [PEER_IDS[2]]],
    "port": [0, 65535, 1],
    "model": [{"a": "/a"}, {"b": "/b", "c": "d=e"}, {"c": "/c"}],
    "device": ["cpu", "cuda:0", "auto"],
    "dtype": ["float32", "float32", "float32"],
    "weights": [[1], [2, 3], [4]],
    "token": ["a", "b", "c"],
}
KEYS = keys_of(EveryShape)
SOURCES = ("flag", "environment", "file")
"""Strongest first."""


def as_texts(value):
    match value:
        case bool():
            return ["true" if value else "false"]
        case list():
            return [str(item) for item in value]
        case dict():
            return [f"{name}={item}" for name, item in value.items()]
        case _:
            return [str(value)]


class Sources:
    """Collects what each source gives, then loads."""

    def __init__(self, folder, suffix=".json"):
        self.argv, self.environ, self.content, self.path = [], {}, {}, folder / f"config{suffix}"

    def give(self, source, name, value, variable=0):
        key = KEYS[name]
        if source == "file":
            self.content[name] = value
        elif source == "environment":
            self.environ[key.variables[variable]] = ",".join(as_texts(value))
        elif key.shape == "switch":
            self.argv.append(key.flag if value else key.negative_flag)
        else:
            self.argv += [word for text in as_texts(value) for word in (key.flag, text)]

    def load(self):
        self.path.write_text(json.dumps(self.content))
        return load(EveryShape, ["--config-file", str(self.path), *self.argv], self.environ, program="mesh-x", description="X.")


def wanted(name, value):
    return Path(value) if name == "state_dir" else value


def test_the_table_covers_every_key():
    assert set(VALUES) == set(KEYS) - {"config_file"}


@pytest.mark.parametrize("name", VALUES)
def test_each_source_alone_beats_the_default(name, tmp_path):
    for source, value in zip(SOURCES, VALUES[name], strict=True):
        sources = Sources(tmp_path)
        sources.give(source, name, value)
        assert getattr(sources.load(), name) == wanted(name, value), source
    assert getattr(Sources(tmp_path).load(), name) == KEYS[name].default


@pytest.mark.parametrize("name", VALUES)
def test_every_pair_of_sources_is_won_by_the_stronger(name, tmp_path):
    for (strong, strong_value), (weak, weak_value) in itertools.combinations(zip(SOURCES, VALUES[name], strict=True), 2):
        if isinstance(strong_value, bool) or strong_value == weak_value:
            # With two values there is one that differs from the default: test both ways round.
            weak_value = VALUES[name][0]
            strong_value = not weak_value if KEYS[name].default is None else KEYS[name].default
        sources = Sources(tmp_path)
        sources.give(strong, name, strong_value)
        sources.give(weak, name, weak_value)
        assert getattr(sources.load(), name) == wanted(name, strong_value), (strong, weak)


@pytest.mark.parametrize("name", VALUES)
def test_all_three_sources_at_once(name, tmp_path):
    sources = Sources(tmp_path)
    for source, value in zip(SOURCES, VALUES[name], strict=True):
        sources.give(source, name, value)
    assert getattr(sources.load(), name) == wanted(name, VALUES[name][0])


@pytest.mark.parametrize("name", [name for name in VALUES if len(KEYS[name].variables) > 1])
def test_documented_variables_are_read_and_weaker_than_ours(name, tmp_path):
    last = len(KEYS[name].variables) - 1
    sources = Sources(tmp_path)
    sources.give("environment", name, VALUES[name][0], variable=last)
    assert getattr(sources.load(), name) == VALUES[name][0]
    for variable in range(last):
        other = KEYS[name].default if KEYS[name].shape == "switch" else VALUES[name][1]
        sources.give("environment", name, other, variable=variable)
        assert getattr(sources.load(), name) == other
        del sources.environ[KEYS[name].variables[variable]]


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_of_keys_and_sources(seed, tmp_path):
    """Property: whatever is given where, each key has the value of its strongest source."""
    import random

    chance = random.Random(seed)
    sources, expected = Sources(tmp_path), {}
    for name, values in VALUES.items():
        for source, value in reversed(list(zip(SOURCES, values, strict=True))):
            if chance.random() < 0.5:
                sources.give(source, name, value)
                expected[name] = wanted(name, value)
    loaded = sources.load()
    assert {name: getattr(loaded, name) for name in VALUES} == {name: expected.get(name, KEYS[name].default) for name in VALUES}


def loaded(*argv, environ=None):
    return load(EveryShape, argv, environ or {}, program="mesh-x", description="Does X.")


def refusal(*argv, environ=None):
    with pytest.raises(Misconfigured) as caught:
        loaded(*argv, environ=environ)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_file_may_be_toml_and_named_by_the_environment(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('port = 9000\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n[model]\nmine = "/m"\n')
    config = loaded(environ={"INFERMESH_CONFIG_FILE": str(file)})
    assert (config.port, config.listen, config.model) == (9000, ["/ip4/127.0.0.1/tcp/0"], {"mine": "/m"})
    assert config.config_file == file


def test_an_empty_variable_is_not_given():
    assert loaded(environ={"INFERMESH_PORT": "", "HF_SERVER_PORT": "1"}).port == 1


@pytest.mark.parametrize("word", ["true", "True", "1", "yes", "on"])
def test_words_for_yes(word):
    assert loaded(f"--mdns={word}").mdns
    assert loaded(environ={"INFERMESH_MDNS": word}).mdns


def test_a_value_may_contain_the_equals_sign_and_a_switch_may_be_turned_back():
    assert loaded("--name=a=b", "--no-mdns", "--mdns").name == "a=b"
    assert loaded("--no-mdns", "--mdns").mdns


def test_a_path_may_start_with_the_home_folder():
    assert loaded("--state-dir", "~/x").state_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--drian-timeout", "3"], "unknown flag --drian-timeout: did you mean --drain-timeout?"),
        (["--zzz"], "unknown flag --zzz: see mesh-x --help"),
        (["hello"], "unexpected argument 'hello'"),
        (["--port"], "--port needs a value"),
        (["--port", "--mdns"], "--port needs a value"),
        (["--port", "eighty"], "--port: 'eighty' is not valid; give a whole number at least 0 and at most 65535"),
        (["--port", "70000"], "--port: '70000' is not valid"),
        (["--drain-timeout", "-1"], "--drain-timeout: '-1' is not valid; give a number at least 0"),
        (["--drain-timeout", "inf"], "--drain-timeout: inf is not valid"),
        (["--mdns=perhaps"], "--mdns: 'perhaps' is not valid; give true or false"),
        (["--data-type", "float3"], "--data-type: 'float3' is not valid; give one of auto, float32"),
        (["--weights", "x"], "--weights: ['x'] is not valid; give a list, each item a whole number"),
        (["--model", "m"], "--model: 'm' is not valid; write it as KEY=VALUE"),
        (["--model", "m=1", "--model", "m=2"], "--model: 'm' is given twice"),
        (["--log-level", "loud"], "--log-level: 'loud' is not a log level; give debug, info"),
        (["--listen", "/ip4/1.2.3.4/udp/1"], "is not a TCP multiaddr"),
        (["--bootstrap", "/ip4/1.2.3.4/tcp/1"], "it must end in /p2p/PEER-ID"),
        (["--name", "a\nb"], "is not a name"),
        (["--state-dir", ""], "--state-dir: '' is not valid; give a path"),
        (["--token", "sk-123456"], "--token: the value is not valid"),
    ],
)
def test_a_bad_flag_names_itself_and_what_is_valid(argv, said):
    assert said in refusal(*argv)


def test_a_secret_is_not_repeated():
    assert "sk-123456" not in refusal("--token", "sk-123456")


def test_a_bad_variable_is_named():
    assert refusal(environ={"HF_SERVER_PORT": "x"}).startswith("HF_SERVER_PORT: 'x' is not valid")


def test_a_long_value_is_cut():
    assert len(refusal("--port", "9" * 10_000)) < 300


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.toml",
            'name = "n"\n\ndrian_timeout = 3\n',
            "a.toml, line 3: unknown key 'drian_timeout'; did you mean drain_timeout?",
        ),
        ("a.toml", "drain-timeout = 3\n", "line 1: unknown key 'drain-timeout'; did you mean drain_timeout?"),
        ("a.toml", '[model]\nport = "x"\n[backend]\ntype = "x"\n', "line 3: unknown key 'backend'; valid are: bootstrap, listen"),
        ("a.toml", 'name = "x"\n"zz".y = 1\n', "line 2: unknown key 'zz'"),
        ("a.toml", '[model]\nport = "x"\n', ""),
        ("a.toml", 'model.port = "x"\nport = "x"\n', "line 2, port: 'x' is not valid; give a whole number"),
        (
            "a.toml",
            'listen = "/ip4/1.2.3.4/tcp/1"\n',
            "line 1, listen: '/ip4/1.2.3.4/tcp/1' is not valid; give a list, each item text",
        ),
        ("a.toml", "model = 3\n", "line 1, model: 3 is not valid; give a table of KEY = text"),
        ("a.toml", "a = \n", "a.toml is not valid TOML: Invalid value (at line 1, column 5)"),
        ("a.toml", 'config_file = "b.toml"\n', "line 1: unknown key 'config_file'"),
        ("a.json", '{"name": "n",\n "prot": 1}', "a.json, line 2: unknown key 'prot'; did you mean port?"),
        ("a.json", '{"port":\n "x"}', "a.json, line 1, port: 'x' is not valid"),
        ("a.json", '{"port"', "a.json is not valid JSON"),
        ("a.json", "[1]", "must hold one object of keys and values"),
        ("a.json", "[" * 100_000, "a.json is not valid JSON"),
        ("a.ini", "port = 1", "must end in .toml or .json"),
    ],
)
def test_a_bad_file_names_the_file_and_the_line(name, text, said, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    if said:
        assert said in refusal("--config-file", str(file))
    else:
        assert loaded("--config-file", str(file)).model == {"port": "x"}


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in refusal("--config-file", str(tmp_path / "none.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal("--config-file", str(binary))


def test_help_lists_every_flag_variable_and_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        loaded("--help")
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for key in KEYS.values():
        assert key.flag in printed
        assert all(variable in printed for variable in key.variables)
    for text in ("Does X.", "--no-mdns", "default: 30;", "default: /ip4/0.0.0.0/tcp/0;", "--model ID=PATH (may be repeated)"):
        assert text in printed


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        loaded("--version")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == "mesh-x 0.1.0\n"


def test_a_schema_that_breaks_the_rules_is_refused():
    class NoOption(msgspec.Struct):
        port: int = 1

    class NoDefault(msgspec.Struct):
        port: Annotated[int, Option(help="P.")]

    class OneFlagTwice(msgspec.Struct):
        port: Annotated[int, Option(help="P.")] = 1
        other: Annotated[int, Option(help="P.", flag="--port")] = 1

    for schema, said in ((NoOption, "no Option"), (NoDefault, "no default"), (OneFlagTwice, "two keys")):
        with pytest.raises(TypeError, match=said):
            keys_of(schema)
