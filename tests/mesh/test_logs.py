import io
import json
import logging

import pytest

from mesh import logs


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("mesh.link", "libp2p.host"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def logged(log_format, levels, act):
    stream = io.StringIO()
    logs.configure(log_format, levels, stream)
    act()
    return stream.getvalue()


def test_text_is_one_line_with_level_and_module():
    line = logged("text", "info", lambda: logging.getLogger("mesh.link").info("up after %d s", 3))
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "info    mesh.link: up after 3 s\n"


def test_a_message_cannot_forge_a_second_line():
    assert logged("text", "info", lambda: logging.getLogger("x").info("a\nb\x1b[0m")).count("\n") == 1


def test_json_has_the_exception_as_a_field():
    def act():
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("x").exception("it failed")

    fields = json.loads(logged("json", "info", act))
    assert (fields["level"], fields["logger"], fields["message"]) == ("error", "x", "it failed")
    assert "ValueError: broken" in fields["exception"]


def test_levels_per_module():
    def act():
        for name in ("mesh.link", "mesh.peer"):
            logging.getLogger(name).debug("fine detail")

    assert "mesh.link" in logged("text", "info,mesh.link=debug", act)
    assert "mesh.peer" not in logged("text", "info,mesh.link=debug", act)


def test_foreign_libraries_are_quiet_unless_named():
    def act():
        logging.getLogger("libp2p.host").error("a connection ended")

    assert logged("text", "debug", act) == ""
    assert "a connection ended" in logged("text", "info,libp2p=debug", act)


@pytest.mark.parametrize("spec", ["", "loud", "info,", "=debug", "mesh=loud"])
def test_a_bad_level_says_what_is_valid(spec):
    with pytest.raises(ValueError, match="is not a log level; give debug, info, warning, error"):
        logs.parse_levels(spec)


def test_a_stream_that_nobody_reads_is_no_failure():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    logs.configure("text", "info", Broken())
    logging.getLogger("x").info("lost")
