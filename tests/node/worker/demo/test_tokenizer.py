from random import Random

import pytest

from node.worker.demo.tokenizer import build_tokenizer

TEXTS = (
    "",
    " ",
    "Hello",
    "  two  spaces ",
    "tab\tand\nline\r\n",
    "naïve café Łódź",
    "你好,世界",
    "مرحبا",
    "👩‍👩‍👧‍👦🇩🇪",
    "\x00\x7f\ufffd",
    "mesh-node --model a=/b",
)


def random_text(random):
    def character():
        while 0xD800 <= (code := random.randrange(0x110000)) < 0xE000:
            pass
        return chr(code)

    return "".join(character() for _ in range(random.randrange(1, 40)))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_went_in(demo, text):
    assert demo.tokenizer.decode(demo.tokenizer(text).input_ids) == text


def test_any_unicode_comes_back_as_it_went_in(demo):
    random = Random(0)
    for _ in range(500):
        text = random_text(random)
        assert demo.tokenizer.decode(demo.tokenizer(text).input_ids) == text


def test_every_byte_has_a_token(demo):
    assert len(demo.tokenizer) == 1024
    for byte in range(128):
        assert len(demo.tokenizer(chr(byte)).input_ids) == 1


def test_the_template_renders_a_chat(demo):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "image_url"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": None},
    ]
    assert demo.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_tokens_that_steer_are_single(demo):
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert len(demo.tokenizer(special).input_ids) == 1
    assert demo.tokenizer.eos_token == "<|im_end|>"


def test_the_same_seed_builds_the_same_tokenizer():
    first, again = (build_tokenizer(3, vocabulary=300, conversations=50).get_vocab() for _ in range(2))
    assert first == again
