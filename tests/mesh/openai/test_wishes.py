import pytest

from mesh.errors import BadRequest
from mesh.http.message import Request
from mesh.messages.inference import InferenceRequest
from mesh.openai.wishes import as_headers_say

PLAIN = InferenceRequest(request_id="r", model="m", prompt="hello")


def wished(client: str = "10.0.0.1", **headers: str) -> InferenceRequest:
    named = {f"x-infermesh-{name.replace('_', '-')}": text for name, text in headers.items()}
    return as_headers_say(Request("POST", "/v1/completions", headers=named, client=client), PLAIN)


def test_without_headers_the_gateway_decides():
    request = wished()
    assert (request.resume, request.hedge, request.priority, request.deadline_ms) == (True, None, 0, None)
    assert request.client == "10.0.0.1"


@pytest.mark.parametrize(("text", "meant"), [("on", True), ("OFF", False)])
def test_switches_are_on_or_off(text, meant):
    request = wished(resume=text, hedge=text)
    assert (request.resume, request.hedge) == (meant, meant)


def test_numbers_are_taken():
    request = wished(priority="-7", deadline_ms="1500")
    assert (request.priority, request.deadline_ms) == (-7, 1500)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resume", "maybe"),
        ("hedge", ""),
        ("hedge", "1"),
        ("priority", "high"),
        ("priority", "101"),
        ("priority", "--1"),
        ("priority", "1" * 5000),
        ("priority", "٣"),
        ("deadline_ms", "0"),
        ("deadline_ms", "-5"),
        ("deadline_ms", "1e3"),
        ("deadline_ms", "nan"),
        ("deadline_ms", "86400001"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name, text):
    with pytest.raises(BadRequest) as caught:
        wished(**{name: text})
    assert caught.value.param == f"x-infermesh-{name.replace('_', '-')}"
    assert len(caught.value.message) < 200


def test_the_name_of_the_key_is_the_tenant():
    assert as_headers_say(Request("POST", "/v1/completions", tenant="alice"), PLAIN).tenant == "alice"
    assert wished().tenant == "anonymous"
