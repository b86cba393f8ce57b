"""Tables of a file that describe one thing each, and tables that only group keys."""

import json
from typing import Annotated

import msgspec
import pytest

from mesh.config import CommonConfig, Option, load
from mesh.config.positions import line_of
from mesh.config.schema import keys_of
from mesh.errors import Misconfigured


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    kind: Annotated[str, Option(help="What it is.", flag="--kind", environment=("KIND",))] = "plain"
    sizes: Annotated[list[int], Option(help="Its sizes.")] = msgspec.field(default_factory=list)
    words: Annotated[str | list[str], Option(help="Words.")] = ""
    token: Annotated[str, Option(help="A token.", secret=True)] = ""
    origin: str = ""


class Config(CommonConfig, frozen=True, kw_only=True):
    limit: Annotated[int, Option(help="A limit.", table="bounds")] = 1
    thing: Annotated[list[Thing], Option(help="Things.")] = msgspec.field(default_factory=list)


def read(folder, text, *argv, suffix="toml", **environ):
    file = folder / f"a.{suffix}"
    file.write_text(text)
    return load(Config, ["--config-file", str(file), *argv], environ, program="mesh-x", description="")


def test_keys_of_records_are_flags_and_variables():
    keys = keys_of(Config)
    assert (keys["thing.sizes"].flag, keys["thing.sizes"].variables) == ("--thing-sizes", ("INFERMESH_THING_SIZES",))
    assert (keys["thing.kind"].flag, keys["thing.kind"].variables) == ("--kind", ("INFERMESH_THING_KIND", "KIND"))
    assert "thing.origin" not in keys
    assert "thing" not in keys


@pytest.mark.parametrize("text", ['[thing]\nkind = "a"\nsizes = [1]\n', '[[thing]]\nkind = "a"\nsizes = [1]\n'])
def test_one_record_is_beaten_key_by_key(tmp_path, text):
    (thing,) = read(tmp_path, text).thing
    assert (thing.kind, thing.sizes, thing.origin) == ("a", [1], f"{tmp_path}/a.toml, line 1")
    (thing,) = read(tmp_path, text, "--thing-sizes", "2", "--thing-sizes", "3", KIND="b").thing
    assert (thing.kind, thing.sizes) == ("b", [2, 3])
    (thing,) = read(tmp_path, text, "--kind", "c", KIND="b").thing
    assert thing.kind == "c"


def test_flags_alone_make_a_record_and_nothing_makes_none(tmp_path):
    assert read(tmp_path, "").thing == []
    assert read(tmp_path, "", "--kind", "x").thing == [Thing(kind="x")]


def test_several_records_keep_their_order_and_take_no_flags(tmp_path):
    text = '[[thing]]\nkind = "a"\n[[thing]]\n\nkind = "b"\n'
    things = read(tmp_path, text).thing
    assert [(thing.kind, thing.origin.rpartition(" ")[2]) for thing in things] == [("a", "1"), ("b", "3")]
    with pytest.raises(Misconfigured, match=r"--kind is about the only \[thing\], and the file has 2"):
        read(tmp_path, text, "--kind", "c")


def test_text_and_lists_in_one_key(tmp_path):
    assert read(tmp_path, '[thing]\nwords = "a b"\n').thing[0].words == "a b"
    assert read(tmp_path, '[thing]\nwords = ["a b"]\n').thing[0].words == ["a b"]


def test_a_table_of_plain_keys_may_be_left_out(tmp_path):
    assert read(tmp_path, "[bounds]\nlimit = 5\n").limit == 5
    assert read(tmp_path, "limit = 5\n").limit == 5
    assert read(tmp_path, "[bounds]\nlimit = 5\n", INFERMESH_LIMIT="6").limit == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[[thing]]\n[[thing]]\nkind = "a"\nsizes = ["x"]\n',
            "line 4, thing.sizes: ['x'] is not valid; give a list, each item a whole",
        ),
        ("[[thing]]\nkind = 3\n", "line 2, thing.kind: 3 is not valid; give text"),
        ("[[thing]]\nwords = 3\n", "line 2, thing.words: 3 is not valid; give text"),
        ("[[thing]]\norigin = 'x'\n", "line 2: unknown key 'origin'; valid are: kind, sizes, words, token"),
        ("thing = [1]\n", "line 1: thing must be a table; write [thing]"),
        ("thing = [{kindd = 1}]\n", "line 1: unknown key 'kindd'; did you mean kind?"),
        ("[bounds]\nlimits = 1\n", "line 2: unknown key 'limits'; did you mean limit?"),
        ("limit = 1\n[bounds]\nlimit = 1\n", "line 3: limit is given twice"),
        ("\n[bound]\nlimit = 1\n", "line 2: unknown key 'bound'; did you mean bounds?"),
        ("[thing]\ntoken = 123456\n", "line 2, thing.token: the value is not valid"),
        ("\n".join(["[[thing]]"] * 300), "has 300 tables [[thing]]; 256 are allowed"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_key(tmp_path, text, said):
    with pytest.raises(Misconfigured) as caught:
        read(tmp_path, text)
    assert said in caught.value.message
    assert "123456" not in caught.value.message


def test_lines_in_json(tmp_path):
    text = json.dumps({"thing": [{"kind": "a"}, {"kind": "b"}]}, indent=1)
    assert [line_of(text, ("thing", "kind"), index, is_json=True) for index in (0, 1, 7)] == [4, 7, 7]
    assert line_of(text, ("nothing",), is_json=True) is None
    assert [thing.kind for thing in read(tmp_path, text, suffix="json").thing] == ["a", "b"]
