import pytest

from gateway.routing.demand import BLOCK, BLOCK_TOKENS, MAX_BLOCKS, asked_demand, demand_of
from mesh.errors import BadRequest
from mesh.messages.inference import InferenceRequest

SYSTEM = {"role": "system", "content": "s" * (3 * BLOCK)}


def chat(*messages, **more) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", messages=list(messages), **more)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def shared(one: InferenceRequest, other: InferenceRequest) -> int:
    pairs = zip(demand_of(one).blocks, demand_of(other).blocks, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(demand_of(x).blocks) for x in (one, other)))


def test_sizes_are_counted_in_tokens_of_four_bytes():
    assert demand_of(chat(user("x" * 400))).prompt_tokens == 100
    assert demand_of(InferenceRequest(request_id="r", model="m", task="completion", prompt=[1, 2, 3])).prompt_tokens == 3
    assert demand_of(InferenceRequest(request_id="r", model="m", task="embedding", inputs=["abcd", "abcd"])).prompt_tokens == 2


def test_a_conversation_shares_its_blocks_with_its_next_turn():
    first = chat(SYSTEM, user("a" * BLOCK))
    second = chat(SYSTEM, user("a" * BLOCK), user("b" * BLOCK))
    assert shared(first, second) == len(demand_of(first).blocks) == 4
    assert len(demand_of(second).blocks) == 5


def test_another_beginning_shares_nothing_whatever_follows():
    assert shared(chat(user("x" + "a" * 4 * BLOCK)), chat(user("y" + "a" * 4 * BLOCK))) == 0


def test_a_change_in_the_middle_ends_what_is_shared():
    assert shared(chat(SYSTEM, user("a" * BLOCK)), chat(SYSTEM, user("b" * BLOCK))) == 3


def test_the_role_of_a_message_counts():
    text = "t" * BLOCK
    assert shared(chat(user(text)), chat({"role": "system", "content": text})) == 0


def test_tenants_and_models_share_nothing():
    one = chat(SYSTEM, tenant="one")
    assert shared(one, chat(SYSTEM, tenant="two")) == 0
    assert shared(one, InferenceRequest(request_id="r", model="other", messages=[SYSTEM], tenant="one")) == 0


def test_token_ids_have_blocks_too():
    ids = list(range(2_000))
    one = InferenceRequest(request_id="r", model="m", task="completion", prompt=ids)
    other = InferenceRequest(request_id="r", model="m", task="completion", prompt=[*ids, 5, 6, 7])
    assert shared(one, other) == len(demand_of(one).blocks) > 3


def test_the_blocks_of_a_huge_prompt_are_bounded():
    assert len(demand_of(chat(user("x" * (2 * MAX_BLOCKS * BLOCK)))).blocks) == MAX_BLOCKS
    assert len(demand_of(chat(*[user("x" * BLOCK)] * (2 * MAX_BLOCKS))).blocks) == MAX_BLOCKS


def test_a_short_prompt_has_no_block_and_an_affinity_only_when_it_says_so():
    assert demand_of(chat(user("hello"))).blocks == ()
    assert demand_of(chat(user("hello"))).affinity == b""
    keys = {demand_of(chat(user("hello"), affinity=key, tenant=tenant)).affinity for key in "ab" for tenant in "xy"}
    assert len(keys) == 4


def test_content_that_is_no_text_does_no_harm():
    assert demand_of(chat({"role": "user", "content": None}, {"role": "user", "content": "\ud800" * BLOCK})).prompt_tokens > 0


def test_a_question_about_routing_describes_a_demand():
    asked = asked_demand({"model": "m", "prompt_tokens": "700", "max_tokens": "5", "user": "ann"})
    assert (asked.prompt_tokens, asked.output_limit) == (700, 5)
    assert asked.affinity == demand_of(chat(user("x"), affinity="ann")).affinity
    assert asked_demand({}).output_limit is None


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "", "٣", "1" * 10])
def test_a_size_that_is_none_is_refused_by_name(text):
    with pytest.raises(BadRequest, match=r"prompt_tokens=.* is no number of tokens"):
        asked_demand({"model": "m", "prompt_tokens": text})


def test_a_block_is_a_whole_number_of_tokens():
    assert BLOCK_TOKENS * 4 == BLOCK


def test_requests_of_one_address_and_tenant_have_the_same_client():
    asked = [chat(user("hi"), client=client, tenant=tenant) for tenant in "ab" for client in ("10.0.0.1", "10.0.0.2", "")]
    found = [demand_of(request).client for request in asked]
    assert len(set(found)) == 5
    assert found[2] == found[5] == b""
    assert demand_of(chat(user("something else"), client="10.0.0.1", tenant="a")).client == found[0]
    assert demand_of(chat(user("hi"), affinity="10.0.0.1", tenant="a")).affinity != found[0]
