import hashlib
import time
from functools import partial

import httpx2
import pytest

from mesh.errors import Denied, Misconfigured
from mesh.http import Request, Response, serve
from mesh.http import keys as keys_module
from mesh.http.keys import Guard, KeyedRouter, Keys


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


FILE = f"""
[[key]]
name = "alice"
hash = "sha256:{digest("open sesame")}"

[[key]]
name = "root"
hash = "{digest("master").upper()}"
scopes = ["admin"]
"""


@pytest.fixture
def keys(tmp_path) -> Keys:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return Keys.read(path)


def shown(key: str, path: str = "/v1/models", method: str = "GET") -> Request:
    return Request(method, path, headers={"authorization": f"Bearer {key}"})


def test_a_key_is_known_by_its_hash_however_it_is_shown(keys):
    assert keys.caller(shown("open sesame")).name == "alice"
    assert keys.caller(Request("GET", "/", headers={"x-api-key": "master"})).name == "root"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic abc"}, "missing_api_key"),
        ({"authorization": "Bearer wrong"}, "invalid_api_key"),
        ({"x-api-key": "\ud800"}, "invalid_api_key"),
    ],
)
def test_whoever_has_none_or_a_wrong_one_is_denied(keys, headers, code):
    with pytest.raises(Denied) as caught:
        keys.caller(Request("GET", "/", headers=headers))
    assert (caught.value.code, caught.value.status) == (code, 401)
    assert "wrong" not in caught.value.message


@pytest.mark.parametrize(
    ("key", "method", "path", "passes"),
    [
        ("open sesame", "POST", "/v1/chat/completions", True),
        ("open sesame", "GET", "/ws/me", True),
        ("open sesame", "GET", "/services", True),
        ("open sesame", "POST", "/services", False),
        ("open sesame", "DELETE", "/services/x", False),
        ("master", "POST", "/v1/chat/completions", False),
        ("master", "GET", "/ws/me", False),
        ("master", "POST", "/services", True),
        ("master", "GET", "/status", True),
        ("master", "GET", "/v1/mesh/bootstrap", True),
        ("wrong", "GET", "/nowhere", False),
        ("wrong", "GET", "/health", True),
        ("wrong", "OPTIONS", "/v1/chat/completions", True),
    ],
)
def test_what_each_scope_is_good_for(keys, key, method, path, passes):
    request = shown(key, path, method)
    if passes:
        Guard(keys).check(request)
    else:
        with pytest.raises(Denied):
            Guard(keys).check(request)


def test_a_port_about_the_program_is_for_administrators_where_it_changes_something(keys):
    guard = Guard(keys, administrative=True)
    guard.check(shown("open sesame", "/info"))
    guard.check(shown("master", "/v1/anything", "POST"))
    with pytest.raises(Denied) as caught:
        guard.check(shown("open sesame", "/control/switch", "POST"))
    assert (caught.value.status, caught.value.code) == (403, "missing_scope")


async def test_a_keyed_port_tells_its_handlers_who_asks(keys, nursery):
    async def who(request):
        return Response.json(request.tenant)

    router = KeyedRouter()
    router.guard = Guard(keys)
    router.add("GET", "/v1/who", who)
    port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        refused = await client.get("/v1/who")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
        told = await client.get("/v1/who", headers={"authorization": "Bearer open sesame"})
        assert told.json() == "alice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 keys"),
        ("key = 3", "is not a file of keys"),
        ("a = ", "is not a file of keys"),
        ('[[key]]\nname = "a"\nhash = "secret"\n', "the hash of 'a' is not a SHA-256"),
        (f'[[key]]\nname = ""\nhash = "{digest("a")}"\n', "'' is not a name"),
        (f'[[key]]\nname = "a"\nhash = "{digest("a")}"\nscopes = ["root"]\n', "is not a file of keys"),
        (f'[[key]]\nname = "a"\nhash = "{digest("a")}"\n[[key]]\nname = "a"\nhash = "{digest("b")}"\n', "'a' is there twice"),
        (f'[[key]]\nname = "a"\nhash = "{digest("a")}"\n[[key]]\nname = "b"\nhash = "{digest("a")}"\n', "are one key"),
    ],
    ids=["empty", "shape", "no TOML", "hash", "name", "scope", "name twice", "key twice"],
)
def test_a_bad_file_is_refused(tmp_path, text, said):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(Misconfigured) as caught:
        Keys.read(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(Misconfigured, match="No such file"):
        Keys.read(tmp_path / "none.toml")


@pytest.fixture
def always_looking(monkeypatch):
    monkeypatch.setattr(keys_module, "LOOK_EVERY", 0.0)


def test_a_changed_file_is_read_again(tmp_path, always_looking):
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    keys = Keys.read(path)
    path.write_text(FILE.partition("\n\n")[0] + "\n")
    assert keys.caller(shown("open sesame")).name == "alice"
    with pytest.raises(Denied):
        keys.caller(shown("master"))
    path.write_text("# Nobody.\n")
    with pytest.raises(Denied):
        keys.caller(shown("open sesame"))


@pytest.mark.parametrize("broken", ["[[key", None], ids=["no TOML", "gone"])
def test_a_file_that_breaks_changes_nothing_and_is_logged_once(tmp_path, always_looking, caplog, broken):
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    keys = Keys.read(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    for _ in range(3):
        assert keys.caller(shown("open sesame")).name == "alice"
    (record,) = caplog.records
    assert "the keys of before stay good" in record.getMessage()
    assert str(path) in record.getMessage()


def test_the_file_is_looked_at_now_and_then_only(keys, tmp_path):
    (tmp_path / "keys.toml").unlink()
    keys._look_at = time.monotonic() + 3600
    keys.caller(shown("master"))
    assert keys._stamp is not None, "nobody looked"
