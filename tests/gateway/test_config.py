import pytest

from gateway.config import GatewayConfig, check_binding
from mesh.config import load
from mesh.errors import Misconfigured


def config(*argv: str, **environ: str) -> GatewayConfig:
    return load(GatewayConfig, argv, environ, program="mesh-gateway", description="")


def test_defaults():
    found = config()
    assert (found.host, found.port, found.strategy) == ("127.0.0.1", 8000, "predicted_latency")


def test_flags_beat_the_environment_and_ours_beats_the_bare_one():
    assert config("--port", "1234", INFERMESH_PORT="1", HF_SERVER_PORT="2", PORT="3").port == 1234
    assert config(INFERMESH_PORT="1", HF_SERVER_PORT="2", PORT="3").port == 1
    assert config(HF_SERVER_PORT="2", PORT="3").port == 2
    assert config(PORT="3", HOST="::1").host == "::1"
    assert config(LOAD_BALANCING_STRATEGY="round_robin").strategy == "round_robin"


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(Misconfigured, match=r"fastest.*least_loaded, predicted_latency, prefix_affinity, round_robin"):
        config("--strategy", "fastest")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1"])
def test_loopback_needs_no_leave(host):
    check_binding(config("--host", host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_hosts_need_insecure(host):
    with pytest.raises(Misconfigured, match=r"--api-keys.*--insecure"):
        check_binding(config("--host", host))
    check_binding(config("--host", host, "--insecure"))


def test_links_per_model_are_bounded():
    assert config().links_per_model == 64
    assert config("--links-per-model", "2").links_per_model == 2
    with pytest.raises(Misconfigured, match="links-per-model"):
        config("--links-per-model", "0")
