import os
import pty
import select
import signal
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-c", "import sys; from bootstrap.command import main; sys.exit(main())", "chat"]


def one_shot(fake, *argv, stdin=""):
    return subprocess.run(
        [*COMMAND, "--gateway", fake.url, *argv], input=stdin, capture_output=True, text=True, check=False, timeout=40
    )


def test_a_prompt_is_answered(fake):
    fake.answers["/v1/models"] = (200, {"data": [{"id": "e", "task": "embedding"}, {"id": "m"}]})
    fake.say("Hello ", "there")
    done = one_shot(fake, "good", "day")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello there\n", "")
    assert (fake.asked[0]["model"], fake.asked[0]["messages"]) == ("m", [{"role": "user", "content": "good day"}])


def test_what_is_piped_in_is_the_prompt(fake):
    fake.say("yes")
    assert one_shot(fake, "--model", "x", stdin="many\nlines\n").stdout == "yes\n"
    assert (fake.asked[0]["model"], fake.asked[0]["messages"][0]["content"]) == ("x", "many\nlines")


def test_no_model_is_served(fake):
    fake.answers["/v1/models"] = (200, {"data": []})
    done = one_shot(fake, "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mesh: no model is served; start a node with `mesh-node`")


def test_an_error_is_one_line(fake):
    fake.chats.append((404, {"error": {"message": "no model x", "code": "model_not_found"}}))
    done = one_shot(fake, "--model", "x", "hi")
    assert (done.returncode, done.stderr) == (1, "mesh: no model x\n")


def test_ctrl_c_stops_a_one_shot_answer(fake):
    fake.say("Hel")
    fake.chats[0].insert(1, "HOLD")
    process = subprocess.Popen(
        [*COMMAND, "--gateway", fake.url, "--model", "m", "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(3) == b"Hel"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out, err) == (130, b"\n", b"")


class Talk:
    """A conversation through a pseudo-terminal."""

    def __init__(self, url):
        self.controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "--gateway", url],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=self._take_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(terminal)
        self.seen = ""

    @staticmethod
    def _take_terminal():
        import fcntl
        import termios

        # Ignored in the background of a shell, and then in every program that is started there.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def until(self, text, nudge=""):
        """Read to the end of `text`; what came before it. `nudge` is typed again whenever nothing comes for some seconds."""
        while text not in self.seen:
            if nudge and not select.select([self.controller], [], [], 3)[0]:
                self.type(nudge)
                continue
            data = os.read(self.controller, 4096)
            assert data, self.seen
            self.seen += data.decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.controller, text.encode())

    def end(self):
        code = self.process.wait(40)
        os.close(self.controller)
        return code


@pytest.fixture
def talk(fake):
    fake.answers["/v1/models"] = (200, {"data": [{"id": "m"}, {"id": "other"}]})
    talk = Talk(fake.url)
    yield talk
    talk.process.kill()
    talk.process.wait()


def test_a_conversation(fake, talk):
    assert "m (also served: other; choose with --model)" in talk.until("> ")
    fake.say("I am\tm.\n", "\x1b[2J")
    talk.type("who are you?\n")
    assert "I am\tm.\r\n\\x1b[2J" in talk.until("> ")

    fake.chats.append((503, {"error": {"message": "no node can do it now", "code": "unavailable"}}))
    talk.type("again\n")
    assert "mesh: no node can do it now" in talk.until("> ")

    fake.say("Three, tw")
    fake.chats[0].insert(1, "HOLD")
    talk.type("count down\n")
    talk.until("tw")
    talk.type("\x03")
    talk.until("> ")

    # A signal between the prompt and readline's own wait is noticed only with the next key.
    talk.type("\x03")
    talk.until("(Ctrl-D leaves)", nudge="\x03")
    # The nudge may come just then as well.
    talk.until("> ", nudge="\n")
    talk.type("\n")
    talk.until("> ")
    fake.say("farewell")
    talk.type("good bye\n")
    talk.until("farewell\r\n")
    talk.until("> ")
    talk.type("\x04")
    assert talk.end() == 0
    assert [(turn["role"], turn["content"]) for turn in fake.asked[-1]["messages"]] == [
        ("user", "who are you?"),
        ("assistant", "I am\tm.\n\x1b[2J"),
        ("user", "count down"),
        ("assistant", "Three, tw"),
        ("user", "good bye"),
    ]
