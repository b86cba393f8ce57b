"""From a request to sequences that the engine can run. Reads the model's tokenizer and nothing of the engine.

1. Everything that is wrong with a request is found here, before the engine hears of it.
2. What another node gave out already (`prior`) is read again as if it had been generated here, and not given out again.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.errors import BackendFailed, BadRequest, MeshError
from node.room import new_tokens
from node.worker.chat import Prompts
from node.worker.output.choice import Pick
from node.worker.output.outputs import Outputs
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.messages.inference import InferenceRequest
    from node.worker.embedding.intake import Job

_logger = logging.getLogger(__name__)

NO_ADAPTERS: Mapping[str, int] = {}


@dataclass(frozen=True)
class Prepared:
    """What became of a request: its sequence, its inputs to embed, or the error that it fails with."""

    number: int
    result: Sequence | Job | MeshError


class Intake:
    """Prepares requests for one model, in one thread at a time."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocabulary: int,
        end_tokens: frozenset[int],
        context_length: int,
        adapters: Mapping[str, int] = NO_ADAPTERS,
    ) -> None:
        """`adapters`: their numbers by the name of the model that a request asks for."""
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer, vocabulary)
        self._outputs = Outputs(tokenizer, template=self._prompts.template, vocabulary=vocabulary, end_tokens=end_tokens)
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._adapters = adapters

    def beside(self, lane: str) -> Intake:
        """The same with a tokenizer of its own, for another thread. Output is still decoded with this one's."""
        other = copy.copy(self)
        tokenizer = copy.deepcopy(self._tokenizer)
        if isinstance(tokenizer.chat_template, str):
            # Compiled templates are found by their text and hold the clock of the request that is rendered.
            tokenizer.chat_template += f"{{#- {lane} -#}}"
        other._prompts = Prompts(tokenizer, self._vocabulary)
        return other

    def is_quick(self, request: InferenceRequest) -> bool:
        """Nothing has to be compiled for it. What is wrong with a request is found without that."""
        try:
            return self._outputs.is_prepared(request)
        except MeshError:
            return True

    def prepare(self, number: int, request: InferenceRequest, *, arrived: float | None = None) -> Prepared:
        """Check and tokenise a request. Never raises. `arrived`: monotonic seconds, now when left out."""
        try:
            return Prepared(number, self._sequence(number, request, time.monotonic() if arrived is None else arrived))
        except MeshError as error:
            return Prepared(number, error)
        except Exception:
            _logger.exception("request %s could not be prepared", request.request_id)
            return Prepared(number, BackendFailed("the request could not be prepared for the model; see the worker's log"))

    def _sequence(self, number: int, request: InferenceRequest, arrived: float) -> Sequence:
        self._outputs.check(request)
        ids = self._prompts.ids(request)
        limit = new_tokens(request, prompt_tokens=len(ids), context_length=self._context_length)
        left = math.inf if request.deadline_ms is None else request.deadline_ms / 1000
        adapter = self._adapters.get(request.model, 0)
        sequence = Sequence(
            number=number,
            tokens=ids,
            prompt_length=len(ids),
            choice=self._outputs.choice(request, ids, limit=limit),
            # Another adapter gives other keys and values for the same tokens.
            tenant=f"{request.tenant}\0{adapter}" if adapter else request.tenant,
            adapter=adapter,
            priority=request.priority,
            deadline=arrived + left,
            arrived=arrived,
        )
        self._resume(sequence, request.prior)
        return sequence

    def _resume(self, sequence: Sequence, prior: list[list[int]]) -> None:
        if len(prior) > 1:
            raise BadRequest(f"prior has {len(prior)} choices, and the request one", param="prior")
        for token in prior[0] if prior else ():
            if not 0 <= token < self._vocabulary:
                raise BadRequest(f"token id {token} is not in the vocabulary of {self._vocabulary}", param="prior")
            if sequence.reason is not None:
                raise BadRequest("prior goes on behind the end of the answer", param="prior")
            sequence.take(Pick(token))
        sequence.resumed = sequence.generated
