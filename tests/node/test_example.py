"""`node.example.toml` is read as it is, and names every key there is."""

import re
import tomllib
from pathlib import Path

from mesh.config import load
from mesh.config.schema import keys_of
from node.backends.plan import plan
from node.backends.settings import TYPES
from node.config import MultiplexerTable, NodeConfig

EXAMPLE = Path(__file__).parents[2] / "node.example.toml"
TEXT = EXAMPLE.read_text()


def read() -> NodeConfig:
    return load(NodeConfig, ["--config-file", str(EXAMPLE)], {}, program="mesh-node", description="")


def test_it_is_a_valid_file_with_a_backend_of_each_type() -> None:
    units = plan(read())
    assert {unit.settings.kind for unit in units} == set(TYPES)
    assert [unit.port for unit in units] == list(range(8100, 8100 + 2 * len(units), 2))


def test_every_key_is_in_it_or_said_to_have_no_default() -> None:
    for key in keys_of(NodeConfig).values():
        if key.option.in_file:
            assert re.search(rf"^(# )?{key.name} = |^\[{key.name}\]", TEXT, re.MULTILINE), key.path


def test_the_defaults_it_shows_are_the_defaults() -> None:
    shown, defaults = read(), NodeConfig()
    examples = {"name", "state_dir", "backend", "config_file", "multiplexer"}
    for name in tomllib.loads(TEXT).keys() & set(NodeConfig.__struct_fields__) - examples:
        assert getattr(shown, name) == getattr(defaults, name), name
    for name in ("max_restarts", "restart_delay", "heartbeat_interval", "check_interval"):
        assert getattr(shown, name) == getattr(defaults, name), name
    (turns,) = shown.multiplexer
    assert turns == MultiplexerTable(origin=turns.origin)
