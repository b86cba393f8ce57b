import json

import pytest

from gateway.registry_view.registration import MAX_METADATA, read_beat, read_change, read_registration
from mesh.errors import BadRequest
from mesh.http import Request

GOOD = {"name": "far", "host": "10.0.0.7", "port": 8100, "hostname": "box", "url": "http://10.0.0.7:8100", "status": "running"}


def request(body) -> Request:
    return Request("POST", "/services", body=body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_whole_body_is_taken_as_it_is_and_unknown_fields_are_ignored():
    read = read_registration(request({**GOOD, "metadata": {"a": 1}, "surplus": True}))
    assert (read.name, read.host, read.port, read.hostname, read.url, read.status) == tuple(GOOD.values())
    assert read.metadata == {"a": 1}


def test_what_may_be_left_out_is_derived():
    read = read_registration(request({"name": "far", "host": "fd00::7", "port": 8100}))
    assert (read.hostname, read.url, read.status, read.metadata) == ("fd00::7", "http://[fd00::7]:8100", "running", {})


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": " a"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": 7}, "name"),
        ({"host": "a b"}, "host"),
        ({"host": "x" * 254}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "8100"}, "port"),
        ({"hostname": "a\x00b"}, "hostname"),
        ({"status": ""}, "status"),
        ({"status": "x" * 65}, "status"),
        ({"status": "a\tb"}, "status"),
        ({"url": "ftp://10.0.0.7/"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://user:secret@10.0.0.7"}, "url"),
        ({"url": "http://10.0.0.7/?a=b"}, "url"),
        ({"url": "http://10.0.0.7:99999"}, "url"),
        ({"url": "http://a b"}, "url"),
        ({"url": "http://[x"}, "url"),
        ({"url": "http://" + "x" * 2048}, "url"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * MAX_METADATA}}, "metadata"),
    ],
)
def test_every_field_is_bounded_and_named(change, param):
    with pytest.raises(BadRequest) as caught:
        read_registration(request({**GOOD, **change}))
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("field", ["name", "host", "port"])
def test_what_is_missing_is_named(field):
    with pytest.raises(BadRequest, match=f"{field} is required") as caught:
        read_registration(request({key: value for key, value in GOOD.items() if key != field}))
    assert caught.value.param == field


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"7", b'{"a":' * 3000])
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest):
        read_registration(request(body))


def test_a_change_keeps_what_it_does_not_name_and_makes_a_new_url_for_a_new_place():
    known = read_registration(request(GOOD))
    assert read_change(request({"status": "stopped"}), known).url == GOOD["url"]
    assert read_change(request({"port": 9}), known).url == "http://10.0.0.7:9"
    assert read_change(request({"port": 9, "url": "https://x"}), known).url == "https://x"
    with pytest.raises(BadRequest) as caught:
        read_change(request({"port": -1}), known)
    assert caught.value.param == "port"


def test_a_heartbeat_may_be_empty_or_say_a_status():
    assert read_beat(request(b"")) is None
    assert read_beat(request({"status": "running"})) == "running"
    with pytest.raises(BadRequest) as caught:
        read_beat(request({"status": 1}))
    assert caught.value.param == "status"


@pytest.mark.parametrize(
    ("metadata", "routable", "babysitter"),
    [
        ({}, True, None),
        ({"type": "openai-api"}, True, None),
        ({"type": "openai-api", "parent_service": "X"}, True, "http://10.0.0.7:8101"),
        ({"babysitter": True}, True, "http://10.0.0.7:8101"),
        ({"babysitter_url": "http://other:9/"}, True, "http://other:9"),
        ({"babysitter_url": "file:///x"}, True, None),
        ({"type": "vllm", "babysitter": "enhanced"}, False, None),
        ({"type": "database"}, False, None),
    ],
)
def test_what_is_routable_and_who_watches_over_it(metadata, routable, babysitter):
    read = read_registration(request({**GOOD, "metadata": metadata}))
    assert (read.routable, read.babysitter_url) == (routable, babysitter)


@pytest.mark.parametrize(("weight", "taken"), [(2, 2.0), (0.5, 0.5), (0, 1.0), (-1, 1.0), ("x", 1.0), (True, 1.0), (1e9, 1.0)])
def test_only_a_sane_weight_counts(weight, taken):
    assert read_registration(request({**GOOD, "metadata": {"weight": weight}})).weight == taken


def test_the_base_of_requests_is_without_v1():
    assert read_registration(request({**GOOD, "url": "https://host/api/v1/"})).base == "https://host/api"
