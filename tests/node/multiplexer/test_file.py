import pytest

from mesh.errors import Misconfigured
from node.multiplexer.arguments import with_multiplexer_file
from node.multiplexer.file import is_multiplexer_file, read_multiplexer_file

YAML = """\
models:
  org/small:
    port: 8001
    wake: |
      for i in $(seq 1 120); do
        curl -sf http://localhost:8001/health && exit 0
      done
      exit 1
    sleep: ./sleep.sh
    alive: curl -sf http://localhost:8001/health

  org/large:
    port: 8002
    wake: ./wake.sh
    sleep: ./sleep.sh
    alive: ./alive.sh

policy:
  request_timeout_secs: 60
  drain_before_switch: false
  min_active_secs: 5
port: 3000
"""
JSON = '{"models": {"m": {"port": 8001, "wake": "w", "sleep": "s", "alive": "a"}}, "policy": {"policy_type": "cost_aware"}}'
TOML = """\
port = 3100
[policy]
policy_type = "time_slice"
[models."org/small"]
port = 8001
wake = "w"
sleep = "s"
alive = "a"
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_yaml_json_and_toml_say_the_same_things(write) -> None:
    file = read_multiplexer_file(write("mux.yaml", YAML))
    assert [(model.model, model.port) for model in file.models] == [("org/small", 8001), ("org/large", 8002)]
    assert file.models[0].wake.startswith("for i in")
    assert (file.settings.request_timeout_secs, file.settings.drain_before_switch, file.settings.min_active_secs) == (
        60,
        False,
        5,
    )
    assert file.port == 3000
    assert read_multiplexer_file(write("mux.json", JSON)).settings.policy_type == "cost_aware"
    toml = read_multiplexer_file(write("mux.toml", TOML))
    assert (toml.port, toml.settings.policy_type, toml.models[0].model) == (3100, "time_slice", "org/small")


def test_what_is_left_out_is_as_it_always_was(write) -> None:
    file = read_multiplexer_file(write("mux.conf", JSON.replace(', "policy": {"policy_type": "cost_aware"}', "")))
    assert (file.port, file.settings.policy_type, file.settings.drain_before_switch) == (3000, "fifo", True)
    assert (file.settings.request_timeout_secs, file.settings.min_active_secs) == (None, 0)
    assert (file.settings.coalesce_window_ms, file.settings.amortization_factor, file.settings.max_wait_secs) == (2000, 0.5, 15)
    assert (file.settings.tick_interval_ms, file.settings.min_quantum_ms) == (500, 2000)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        pytest.param(YAML.replace("port: 8002", "port: many"), 13, "models.org/large.port", id="type"),
        pytest.param(YAML.replace("port: 8002", "prot: 8002"), 13, "did you mean port", id="unknown"),
        pytest.param(YAML.replace("    alive: ./alive.sh\n", ""), 12, "alive", id="missing"),
        pytest.param(YAML.replace("port: 8002", "port: 8001"), 13, "org/small has 8001 already", id="clash"),
        pytest.param(YAML.replace("port: 8002", "port: 3001"), 13, "health and control", id="own-port"),
        pytest.param(YAML.replace("min_active_secs: 5", "min_active_secs: -5"), 21, "policy.min_active_secs", id="bound"),
        pytest.param(YAML.replace("policy:\n", "policy: [\n"), 20, "not valid YAML", id="yaml"),
        pytest.param(YAML.replace("port: 8002", "port: 8002\n    memory: 5"), 14, "models.org/large.memory", id="memory-number"),
        pytest.param(YAML.replace("port: 8002", "port: 8002\n    memory: 5G"), 14, "write it as 18GiB", id="memory"),
        pytest.param(YAML.replace("min_active_secs: 5", "memory_budget: 5"), 21, "policy.memory_budget", id="budget"),
        pytest.param(YAML.replace("min_active_secs: 5", "memory_budget: all"), 21, "or give one or free", id="no-budget"),
        pytest.param("models: {}\n", None, "at least one model", id="empty"),
        pytest.param("- a\n", None, "one object", id="list"),
        pytest.param("models:\n  a: 5\n", 2, "an object", id="number"),
    ],
)
def test_what_is_wrong_is_told_with_path_line_and_key(write, text, line, what) -> None:
    path = write("mux.yaml", text)
    with pytest.raises(Misconfigured) as refused:
        read_multiplexer_file(path)
    message = refused.value.message
    assert message.startswith(f"{path}, line {line}" if line else str(path))
    assert what in message


def test_json_and_toml_that_do_not_parse_name_the_line(write) -> None:
    with pytest.raises(Misconfigured, match=r"mux.json, line 2: this is not valid JSON"):
        read_multiplexer_file(write("mux.json", '{\n "models": }'))
    with pytest.raises(Misconfigured, match=r"mux.toml cannot be read: .*line 2"):
        read_multiplexer_file(write("mux.toml", "[models]\nm = ]\n"))
    with pytest.raises(Misconfigured, match=r"mux.toml, line 5, models.org/small.port"):
        read_multiplexer_file(write("mux.toml", TOML.replace("8001", '"x"')))


def test_memory_of_models_and_their_budget(write) -> None:
    text = YAML.replace("port: 8002", "port: 8002\n    memory: 18GiB").replace("min_active_secs: 5", "memory_budget: 70GiB")
    file = read_multiplexer_file(write("mux.yaml", text))
    assert ([model.memory for model in file.models], file.settings.memory_budget) == ([0, 18 << 30], "70GiB")


def test_which_files_are_multiplexer_files(write) -> None:
    assert is_multiplexer_file(write("a.yml", "x"))
    assert is_multiplexer_file(write("a.json", JSON))
    assert is_multiplexer_file(write("a.toml", TOML))
    assert not is_multiplexer_file(write("b.toml", "port = 1"))
    assert not is_multiplexer_file(write("b.json", "{"))


def test_a_multiplexer_file_takes_the_place_of_the_configuration_and_its_port_yields(write) -> None:
    path = str(write("mux.yaml", YAML.replace("port: 3000", "port: 3200")))
    argv, environ = with_multiplexer_file(["--no-mdns", "--config-file", path, "--name", "n"], {})
    assert argv == ["--no-mdns", f"--multiplexer-file={path}", "--name", "n"]
    assert environ == {"INFERMESH_PORT": "3200"}
    argv, environ = with_multiplexer_file([], {"INFERMESH_CONFIG_FILE": path, "INFERMESH_PORT": "5000"})
    assert environ == {"INFERMESH_MULTIPLEXER_FILE": path, "INFERMESH_PORT": "5000"}
    plain = str(write("node.toml", "port = 5"))
    assert with_multiplexer_file([f"--config-file={plain}"], {}) == ([f"--config-file={plain}"], {})
    assert with_multiplexer_file(["--port", "1"], {}) == (["--port", "1"], {})
