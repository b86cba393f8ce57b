"""The demo model's tokenizer: byte-level BPE, so that every text has a token sequence that decodes to exactly that text."""

from collections.abc import Iterable
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from node.worker.demo.corpus import conversation

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# A content may be a string or a list of parts, as in OpenAI's requests; only text parts are read.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- elif message['content'] -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def build_tokenizer(seed: int, *, vocabulary: int = 1024, conversations: int = 6000) -> PreTrainedTokenizerFast:
    """Learn the merges from `conversations` drawn with `seed`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, conversations), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(seed: int, conversations: int) -> Iterable[str]:
    random = Random(seed)  # noqa: S311 (text to learn, no secret)
    for _ in range(conversations):
        for message in conversation(random, 1):
            yield f"{message['role']}\n{message['content']}\n"
    # Every number up to a hundred becomes one token: what counting compares.
    for _ in range(conversations // 10):
        yield ", ".join(map(str, range(101)))
