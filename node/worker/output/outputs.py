"""Makes the `Choice` of each request for one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.worker.detokenizer import Detokenizer, TextStream, token_kinds
from node.worker.output.choice import Choice, Ending, Manner
from node.worker.output.formats import begins_in_thought, model_format
from node.worker.output.forms import asks_for_calls, grammar_of, param_of_form
from node.worker.output.grammar import Grammars
from node.worker.output.penalties import Penalties
from node.worker.output.requests import check_request
from node.worker.output.speech import speech_of
from node.worker.output.vocabulary import TokenBytes
from node.worker.sampling import Draw

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mesh.messages.inference import InferenceRequest
    from node.worker.output.grammar import Constraint


class Outputs:
    """What one model's answers have in common. `template` is the chat template that its prompts are made with."""

    def __init__(self, tokenizer: Any, *, template: str, vocabulary: int, end_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._kinds = token_kinds(tokenizer)
        self._spelling = TokenBytes(tokenizer)
        self._format = model_format(tokenizer, template)
        self._grammars = Grammars(tokenizer, vocabulary=vocabulary, end_tokens=end_tokens)

    def check(self, request: InferenceRequest) -> None:
        """Raises BadRequest when this model can never answer it."""
        check_request(request, vocabulary=self._vocabulary)

    def is_prepared(self, request: InferenceRequest) -> bool:
        """`choice` will not take long. Raises BadRequest."""
        grammar = grammar_of(request, self._format)
        return grammar is None or self._grammars.knows(grammar)

    def choice(self, request: InferenceRequest, prompt: Sequence[int], *, limit: int) -> Choice:
        """The answer to be made; at most `limit` tokens. May compile for seconds, on any thread. Raises BadRequest."""
        inside = self._format.thinks and begins_in_thought(self._tokenizer, prompt)
        calls = asks_for_calls(request)
        reads_markers = request.task == "chat" and (calls or self._format.thinks)
        manner = Manner(
            penalties=Penalties(
                repetition=request.repetition_penalty,
                presence=request.presence_penalty,
                frequency=request.frequency_penalty,
                bias=request.logit_bias,
            ),
            echo=self._echo(request, prompt),
            alternatives=request.logprobs,
            spelled=self._format.special if reads_markers else None,
            constraint=self._constraint(request),
            spelling=self._spelling,
        )
        return Choice(
            draw=Draw(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                min_p=request.min_p,
                seed=request.seed,
            ),
            stream=TextStream(Detokenizer(self._tokenizer, self._kinds), request.stop),
            speech=speech_of(request, self._format, inside=inside),
            ending=Ending(
                tokens=self._end_tokens,
                limit=limit,
                least=request.min_tokens,
                ignored=request.ignore_eos,
                one_call=calls and not request.parallel_tool_calls,
            ),
            prompt=prompt,
            manner=manner,
        )

    def _constraint(self, request: InferenceRequest) -> Constraint | None:
        grammar = grammar_of(request, self._format)
        return None if grammar is None else self._grammars.constraint(grammar, param=param_of_form(request))

    def _echo(self, request: InferenceRequest, prompt: Sequence[int]) -> str:
        if not request.echo:
            return ""
        if isinstance(request.prompt, str):
            return request.prompt
        text: str = self._tokenizer.decode(list(prompt), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
