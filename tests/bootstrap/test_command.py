import json
import os
import socket
import subprocess
import sys

import pytest

from bootstrap.command import main
from bootstrap.doctor import Finding

pytestmark = pytest.mark.usefixtures("own_environment")


def test_status(run, small_mesh):
    code, out, _ = run("status", "--gateway", small_mesh.url)
    assert code == 0
    assert f"gateway {small_mesh.url}: healthy, version 0.1.0" in out
    assert "nodes: 1 linked of 2 known" in out
    assert "near\tnode\tup\t0.5 ms\tm ready 2+1/8\tA Processor, 8 GiB\t12D3near" in out
    assert "away\tnode\t-\t-\t" in out


def test_status_of_an_empty_mesh_says_what_to_start(run, small_mesh):
    small_mesh.answers["/v1/mesh/peers"] = (200, {"peers": []})
    _, out, _ = run("status", "--gateway", small_mesh.url)
    assert "no node is linked, so no model can be served: start `mesh-node`" in out


def test_status_as_json(run, small_mesh):
    _, out, _ = run("status", "--json", "--gateway", small_mesh.url)
    value = json.loads(out)
    assert (value["gateway"], value["health"]["status"], len(value["peers"])) == (small_mesh.url, "healthy", 3)


def test_the_environment_names_the_gateway(run, small_mesh, monkeypatch):
    monkeypatch.setenv("INFERMESH_GATEWAY", small_mesh.url)
    assert run("status")[0] == 0


def test_peers(run, small_mesh):
    assert "way-in\tbootstrap\tup\t0.5 ms\t-\t-\t12D3way-in" in run("peers", "--gateway", small_mesh.url)[1]
    assert len(json.loads(run("peers", "--json", "--gateway", small_mesh.url)[1])["peers"]) == 3


def test_peers_say_what_carries_their_links(run, small_mesh):
    peers = small_mesh.answers["/v1/mesh/peers"][1]["peers"]
    for peer, carrier in zip(peers, ("direct", None, "libp2p"), strict=True):
        peer["carrier"] = carrier
    out = run("peers", "--gateway", small_mesh.url)[1]
    assert "near\tnode\tdirect\t" in out
    assert "away\tnode\t-\t" in out
    assert "way-in\tbootstrap\tlibp2p\t" in out


def test_peers_say_who_relays_a_link(run, small_mesh):
    node, _, relay = small_mesh.answers["/v1/mesh/peers"][1]["peers"]
    node["carrier"], node["via"] = "relay", relay["peer_id"]
    assert "near\tnode\trelayed by way-in\t" in run("peers", "--gateway", small_mesh.url)[1]
    node["via"] = "12D3unknown"
    assert "near\tnode\trelayed by 12D3unknown\t" in run("peers", "--gateway", small_mesh.url)[1]


def test_models(run, small_mesh):
    assert run("models", "--gateway", small_mesh.url)[1].splitlines()[1:] == ["m\t1\t1\t2\t1", "n\t0\t0\t0\t0"]
    value = json.loads(run("models", "--json", "--gateway", small_mesh.url)[1])
    assert value["models"][0] == {"id": "m", "nodes": 1, "ready": 1, "running": 2, "waiting": 1}


def test_no_model(run, small_mesh):
    small_mesh.answers["/v1/models"] = (200, {"data": []})
    assert "no model is served; start a node" in run("models", "--gateway", small_mesh.url)[1]
    assert json.loads(run("models", "--json", "--gateway", small_mesh.url)[1]) == {"models": []}


def test_route(run, small_mesh):
    out = run("route", "m", "--gateway", small_mesh.url)[1]
    assert "m by predicted_latency" in out
    assert "rank\tnode\tstate\texpected time\twhy" in out
    assert "1\tnear\tready\t123 ms\trtt 0.457 ms" in out
    assert "-\taway\tready\t\tthere is no link to it" in out
    assert json.loads(run("route", "m", "--json", "--gateway", small_mesh.url)[1])["candidates"]


def test_a_peers_name_cannot_steer_the_terminal(run, small_mesh):
    small_mesh.answers["/v1/mesh/peers"] = (200, {"peers": [{"name": "\x1b[2Jevil\n\t", "role": "node"}, "nonsense"]})
    out = run("peers", "--gateway", small_mesh.url)[1]
    assert "\\x1b[2Jevil\\n\\t\tnode" in out
    assert "\x1b" not in out


def test_no_gateway(run):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, out, err = run("status", "--gateway", f"127.0.0.1:{unused.getsockname()[1]}")
    assert (code, out) == (1, "")
    assert err.startswith("mesh: no gateway answers at http://127.0.0.1:")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "VERB"),
        (["statsu"], "invalid choice: 'statsu'"),
        (["status", "--jsn"], "--jsn"),
        (["status", "--gateway", "ftp://x"], "is not a URL"),
        (["route"], "MODEL"),
        (["up", "--port", "x"], "'x' is not a port"),
        (["up", "--port", "65536"], "'65536' is not a port"),
        (["up", "--drain-timeout", "x"], "'x' is not a number of seconds"),
        (["up", "--drain-timeout", "-1"], "number of seconds"),
        (["up", "--log-level", "loud"], "'loud' is not a log level"),
        (["doctor", "--model", "x"], "'x' is not ID=PATH"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_line(run, argv, said):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("mesh: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["up", "--help"], ["doctor", "--help"]])
def test_help_and_version_exit_0(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    assert capsys.readouterr().out


def test_a_reader_that_has_seen_enough(small_mesh):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from bootstrap.command import main; sys.exit(main())",
            "peers",
            "--gateway",
            small_mesh.url,
        ],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def found(*results):
    async def examine(settings):
        return [Finding("a check", result, "what was found", "what to do") for result in results]

    return examine


@pytest.mark.parametrize(("results", "code"), [(("ok", "warn"), 0), (("ok", "fail"), 1)])
def test_doctor_exits_1_on_a_failure_only(run, monkeypatch, results, code):
    monkeypatch.setattr("bootstrap.command.examine", found(*results))
    lines = [f"{result}\ta check\twhat was found\twhat to do" for result in results]
    assert run("doctor")[:2] == (code, "\n".join(["\tcheck\tfound\twhat to do", *lines, ""]))
    _, out, _ = run("doctor", "--json")
    assert [check["result"] for check in json.loads(out)["checks"]] == list(results)


def test_doctor_gets_what_the_operator_named(run, monkeypatch, tmp_path):
    seen = []

    async def examine(settings):
        seen.append(settings)
        return []

    monkeypatch.setattr("bootstrap.command.examine", examine)
    monkeypatch.setenv("INFERMESH_BOOTSTRAP", "a, b")
    run("doctor", "--model", f"m={tmp_path}", "--device", "cpu", "--gateway", "host:1")
    run("doctor", "--bootstrap", "c")
    named, plain = seen
    assert (named.bootstrap, named.models, named.device, named.gateway) == (["a", "b"], {"m": tmp_path}, "cpu", "http://host:1")
    assert (named.gateway_named, plain.gateway_named, plain.bootstrap) == (True, False, ["c"])


def test_the_network_is_imported_only_where_it_is_used():
    code = "import bootstrap.command, sys; sys.exit('libp2p' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("strategy", "score", "said"),
    [
        ("best_performance", 2.5, "mean time\twhy\n1\tnear\tready\t2.5 s"),
        ("least_loaded", 0.25, "requests per slot\twhy\n1\tnear\tready\t0.25"),
        ("my.own", 3, "score\twhy\n1\tnear\tready\t3"),
    ],
)
def test_a_score_has_the_unit_of_its_strategy(run, small_mesh, strategy, score, said):
    candidate = {"rank": 1, "name": "near", "state": "ready", "score": score, "parts": {}}
    small_mesh.answers["/v1/route?model=m"] = (200, {"model": "m", "strategy": strategy, "candidates": [candidate]})
    assert said in run("route", "m", "--gateway", small_mesh.url)[1]
