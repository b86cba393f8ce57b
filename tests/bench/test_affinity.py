"""What the comparison of policies by their hits comes to."""

from tests.bench.affinity import FULL, Taken, figures

FOUND = {
    "prefix_affinity": Taken(first=0.1, hits=0.9),
    "round_robin": Taken(first=0.5, hits=0.4),
    "least_loaded": Taken(first=0.2, hits=0.4),
    "predicted_latency": Taken(first=0.1, hits=0.8),
}


def test_only_policies_that_know_nothing_of_prefixes_are_to_be_beaten():
    rows = {figure.name.rpartition(": ")[2]: figure for figure in figures(FOUND, 0.4, FULL)}
    assert [name for name, row in rows.items() if not row.met] == ["cut of it by prefix_affinity, against least_loaded"]
    assert rows["hit rate, prefix_affinity"].floor == 0.85
    assert rows["cut of it by prefix_affinity, against predicted_latency"].floor is None
    assert not figures(FOUND, 0.6, FULL)[0].met, "a cache that keeps most prompts shows nothing"


def test_the_cache_has_room_for_what_runs_and_for_a_part_of_the_prompts():
    bytes_per_token = 14 * 2 * 4 * 64 * 4
    assert FULL.cache_mib << 20 >= (6 * 1024 + 8 * 700) * bytes_per_token
    assert FULL.cache_mib << 20 <= (6 * 1024 + 10 * 700) * bytes_per_token
