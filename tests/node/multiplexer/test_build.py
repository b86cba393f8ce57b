import pytest

from mesh.config import load
from mesh.errors import Misconfigured
from node.backends.adapter import AdapterBackend
from node.backends.build import build
from node.config import NodeConfig
from node.models import demo_model_path
from node.multiplexer.presented import Presented

MUX = '{"models": {"m": {"port": 8001, "wake": "w", "sleep": "s", "alive": "a"}}}'


def configured(*argv):
    return load(NodeConfig, list(argv), {}, program="mesh-node", description="")


async def test_all_models_of_a_node_share_one_multiplexer() -> None:
    (built,) = build(configured("--service-type", "mock", "--args", "a,b", "--switch-policy", "cost_aware"))
    assert [backend.entry.id for backend in built.backends] == ["a", "b"]
    assert all(isinstance(backend, Presented) for backend in built.backends)
    assert len({backend.multiplexer for backend in built.backends}) == 1
    assert not built.answers_itself


async def test_a_file_of_hooks_is_one_backend_that_the_node_answers_for(tmp_path) -> None:
    path = tmp_path / "mux.json"
    path.write_text(MUX)
    (built,) = build(configured("--multiplexer-file", str(path)))
    assert [backend.entry.id for backend in built.backends] == ["m"]
    assert built.unit.settings.kind == "hooks"
    assert not built.answers_itself
    with pytest.raises(Misconfigured, match="names all models of its node"):
        build(configured("--multiplexer-file", str(path), "--model", "x=/tmp"))


def test_what_cannot_sleep_and_policies_that_are_not_there_are_refused() -> None:
    with pytest.raises(Misconfigured, match="unknown switch policy 'lifo'"):
        build(configured("--service-type", "mock", "--args", "a,b", "--switch-policy", "lifo"))
    remote = ("--service-type", "openai", "--backend-url", "http://127.0.0.1:9", "--backend-models", "a")
    with pytest.raises(Misconfigured, match="cannot be put to sleep"):
        build(configured(*remote, "--switch-policy", "fifo"))


HOOKS = """
[multiplexer]
policy_type = "time_slice"
min_quantum_ms = 100
min_active_secs = 5
request_timeout_secs = 60
[[backend]]
type = "hooks"
models = ["org/small"]
aliases = ["small"]
url = "http://127.0.0.1:8001/v1"
upstream_model = "Small"
wake = '''
for i in $(seq 1 120); do
  curl -sf http://localhost:8001/health && exit 0
done
exit 1
'''
sleep = "./sleep.sh"
alive = "curl -sf http://localhost:8001/health"
wake_timeout_secs = 30
[[backend]]
type = "mock"
models = ["mock"]
[[backend]]
type = "openai"
url = "http://127.0.0.1:11434"
models = ["remote"]
shared = false
"""


def read(folder, text: str, *flags: str):
    file = folder / "node.toml"
    file.write_text(text)
    return build(load(NodeConfig, ["--config-file", str(file), *flags], {}, program="mesh-node", description=""))


def refusal(*args) -> str:
    with pytest.raises(Misconfigured) as caught:
        read(*args)
    return caught.value.message


async def test_the_nodes_own_file_says_everything_about_hooks_and_turns(tmp_path) -> None:
    hooked, mock, remote = read(tmp_path, HOOKS)
    (model,), (beside,) = hooked.backends, mock.backends
    assert model.multiplexer is beside.multiplexer
    assert not any(isinstance(backend, Presented) for backend in remote.backends)
    settings = model.multiplexer.settings
    assert (settings.policy_type, settings.min_quantum_ms, settings.min_active_secs) == ("time_slice", 100, 5)
    assert (settings.request_timeout_secs, settings.coalesce_window_ms) == (60, 2000)
    assert (model.entry.id, model.entry.aliases, model.entry.state) == ("org/small", ["small"], "asleep")
    assert not hooked.answers_itself


async def test_flags_beat_the_table_and_need_none(tmp_path) -> None:
    (hooked, *_) = read(tmp_path, HOOKS, "--multiplexer-min-active-secs", "9", "--switch-policy", "fifo")
    assert hooked.backends[0].multiplexer.settings.min_active_secs == 9
    (built,) = build(configured("--service-type", "mock", "--args", "a,b", "--multiplexer-policy-type", "cost_aware"))
    assert built.backends[0].multiplexer.settings.policy_type == "cost_aware"


async def test_models_with_hooks_take_turns_among_themselves_where_nobody_asked_for_more(tmp_path) -> None:
    text = HOOKS[HOOKS.index("[[backend]]") :].replace("shared = false", "")
    hooked, mock, _ = read(tmp_path, text)
    assert isinstance(hooked.backends[0], Presented)
    assert list(hooked.backends[0].multiplexer.members) == ["org/small"]
    assert not isinstance(mock.backends[0], Presented)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (('sleep = "./sleep.sh"\n', ""), "line 7, backend.sleep: the type hooks needs sleep"),
        (('url = "http://127.0.0.1:8001/v1"\n', ""), "backend.url: the type hooks needs url"),
        (('models = ["org/small"]', 'models = ["a", "b"]'), "is about the only model"),
        (
            ('"org/small"]', '"a", "b"]\naliases = []\nupstream_model = ""\n#'),
            "backend.models: the type hooks is about one model",
        ),
        (("wake_timeout_secs = 30", "wake_timeout_secs = 0"), "backend.wake_timeout_secs: 0 is not valid; give a number over 0"),
        (("8001/v1", "8100/v1"), "backend.url: port 8100 is P or P+1 of [[backend]] hooks on this node"),
        (("8001/v1", "8103/v1"), "backend.url: port 8103 is P or P+1 of [[backend]] mock on this node"),
        (("8001/v1", "80011/v1"), "'http://127.0.0.1:80011/v1' is not a server's address"),
        (('type = "mock"', 'type = "mock"\nwake = "./wake.sh"'), "backend.wake: the type mock has no use for wake"),
        (
            ("min_quantum_ms = 100", 'memory_budget = "lots"'),
            "line 4, multiplexer.memory_budget: 'lots' is not an amount of memory",
        ),
        (("wake_timeout_secs = 30", 'memory = "18"'), "backend.memory: '18' is not an amount of memory; write it as 18GiB"),
        (("shared = false", ""), "remote cannot be put to sleep"),
        (
            ('"time_slice"', '"lifo"'),
            "line 3, multiplexer.policy_type: unknown switch policy 'lifo'; give one of cost_aware, fifo",
        ),
        (("min_quantum_ms", "min_quantum"), "line 4: unknown key 'min_quantum'; did you mean min_quantum_ms?"),
        (("[multiplexer]", "[[multiplexer]]\n[[multiplexer]]"), "line 3: a node has one accelerator to share"),
    ],
)
def test_what_is_wrong_in_the_nodes_own_file_is_named_with_line_and_key(tmp_path, changed, said) -> None:
    text = HOOKS.replace(*changed)
    if "aliases = []" in text:
        text = text.replace('aliases = ["small"]\n', "").replace('upstream_model = "Small"\n', "")
    assert text != HOOKS
    assert said in refusal(tmp_path, text)


def test_a_table_beside_a_multiplexer_file_and_one_that_nobody_uses_are_refused(tmp_path) -> None:
    (tmp_path / "mux.json").write_text(MUX)
    assert "how they take turns" in refusal(tmp_path, f'multiplexer_file = "{tmp_path}/mux.json"\n[multiplexer]\n')
    alone = '[multiplexer]\n[backend]\ntype = "mock"\nmodels = ["a"]\nshared = false\n'
    assert "no backend shares the accelerator" in refusal(tmp_path, alone)


async def test_memory_is_stated_per_backend_and_a_model_over_the_budget_is_refused(tmp_path) -> None:
    text = HOOKS.replace("[[backend]]", '[[backend]]\nmemory = "2GiB"').replace(
        "[multiplexer]", '[multiplexer]\nmemory_budget = "3GiB"'
    )
    text = text.replace('memory = "2GiB"\ntype = "openai"', 'type = "openai"')
    hooked, _, _ = read(tmp_path, text)
    assert {member.memory for member in hooked.backends[0].multiplexer.members.values()} == {2 << 30}
    message = refusal(tmp_path, text.replace('"2GiB"', '"4GiB"', 1))
    assert "org/small is said to take more memory than memory_budget, 3GiB, allows" in message


async def test_an_adapter_takes_its_turn_with_its_base(tmp_path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (built,) = build(configured("--model", f"base={demo_model_path()}", "--model", f"ours={adapter}", "--switch-policy", "fifo"))
    base, ours = built.backends
    assert isinstance(base, Presented)
    assert isinstance(ours, AdapterBackend)
    assert ours.base is base
    assert list(base.multiplexer.members) == ["base"]
    assert (ours.entry.id, ours.entry.state) == ("ours", "asleep")
    assert base.multiplexer.adapters == {"ours": "base"}
