import pytest

from mesh.config.addresses import check_bootstrap, check_dial_address, check_listen_address, check_peer_id
from mesh.identity import Identity
from mesh.invite import issue
from mesh.keyring import Keyring

PEER = Identity.from_seed(bytes(32)).peer_id


@pytest.mark.parametrize(
    "address",
    [f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", f"/ip6/::1/tcp/1/ws/p2p/{PEER}", f"/dns4/example.org/tcp/65535/p2p/{PEER}"],
)
def test_good_dial_addresses(address):
    check_dial_address(address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "does not say which peer"),
        ("192.0.2.1:4001", "does not say which peer"),
        ("/ip4/192.0.2.1/tcp/4001", "does not say which peer"),
        (f"/p2p/{PEER}", "is not a multiaddr"),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/ws", "is not a multiaddr"),
        (f"x/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", "is not a TCP multiaddr"),
        ("/ip4/192.0.2.1/tcp/4001/p2p/QmWrong", "which is not a peer id"),
        (f"/ip4/192.0.2.1/udp/4001/p2p/{PEER}", "is not a TCP multiaddr"),
        (f"/ip4/300.0.2.1/tcp/4001/p2p/{PEER}", "is not a host"),
        (f"/dns//tcp/4001/p2p/{PEER}", "is not a host"),
        (f"/ip4/192.0.2.1/tcp/0/p2p/{PEER}", "from 1 to 65535"),
        (f"/ip4/192.0.2.1/tcp/65536/p2p/{PEER}", "from 1 to 65535"),
        (f"/ip4/192.0.2.1/tcp/x/p2p/{PEER}", "from 1 to 65535"),
    ],
)
def test_bad_dial_addresses(address, said):
    with pytest.raises(ValueError, match=said):
        check_dial_address(address)


@pytest.mark.parametrize("address", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/4001/ws"])
def test_good_listen_addresses(address):
    check_listen_address(address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"/ip4/0.0.0.0/tcp/4001/p2p/{PEER}", "names a peer"),
        ("/dns/example.org/tcp/1", "IP address of this machine"),
        ("/ip4/0.0.0.0", "is not a TCP multiaddr"),
    ],
)
def test_bad_listen_addresses(address, said):
    with pytest.raises(ValueError, match=said):
        check_listen_address(address)


def test_a_bootstrap_peer_is_an_address_or_an_invite():
    keyring = Keyring(None, "m")
    keyring.rotate()
    address = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}"
    token = issue(keyring.current, "m", [address], 1.0)
    check_bootstrap(address)
    check_bootstrap(token)
    for wrong, said in (
        (issue(keyring.current, "m", [address.replace("4001", "0")], 1.0), "the port '0'"),
        (token[:-20], "broken"),
        (token[5:], "is neither an address"),
        ("192.0.2.1:4001", "does not say which peer"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            check_bootstrap(wrong)
        assert token[60:] not in str(caught.value)


def test_peer_ids():
    check_peer_id(PEER)
    for wrong in ("", "12D3", PEER[:-1], f"/p2p/{PEER}", "0OIl"):
        with pytest.raises(ValueError, match="is not a peer id"):
            check_peer_id(wrong)
