import io

from bootstrap.tables import show


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_aligned_columns_and_no_markup_of_strangers(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    show(("name", "role"), [("[red]evil\x1b[2J", "node"), ("b", "gateway")])
    text = terminal.getvalue()
    assert "[red]evil\\x1b[2J" in text
    assert text.index("node") - text.rindex("\n", 0, text.index("node")) == text.index("gateway") - text.rindex(
        "\n", 0, text.index("gateway")
    )


def test_a_pipe_gets_tabs(capsys):
    show(("a", "b"), [("1", "2\t3")])
    assert capsys.readouterr().out == "a\tb\n1\t2\\t3\n"


def test_peer_ids_keep_their_ends_on_a_terminal_and_all_in_a_pipe(monkeypatch, capsys):
    rows = [("12D3KooWFBYNtabcdefgh", "n"), ("-", "m")]
    show(("peer id", "name"), rows, ids=["peer id"])
    assert capsys.readouterr().out.splitlines()[1] == "12D3KooWFBYNtabcdefgh\tn"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    show(("peer id", "name"), rows, ids=["peer id"])
    assert "…abcdefgh" in terminal.getvalue()
    assert "12D3" not in terminal.getvalue()
