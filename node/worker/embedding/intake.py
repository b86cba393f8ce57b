"""From a request for embeddings to token ids. What is wrong with it is found here."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mesh.errors import BackendFailed, BadRequest, MeshError
from mesh.vectors import FLOAT_SIZE, MAX_BYTES
from node.room import too_long

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest

_logger = logging.getLogger(__name__)

MAX_INPUTS = 2048


@dataclass(eq=False, kw_only=True)
class Job:
    """One request: its inputs as token ids, and the vectors that are there already. Times are monotonic seconds."""

    number: int
    inputs: list[list[int]]
    dimensions: int | None = None
    priority: int = 0
    deadline: float = math.inf
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    vectors: list[bytes] = field(default_factory=list)
    largest_batch: int = 0

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller is served earlier."""
        return (-self.priority, self.arrived, self.number)

    @property
    def left(self) -> list[list[int]]:
        """Inputs that are still to be computed."""
        return self.inputs[len(self.vectors) :]


class EmbeddingIntake:
    """Prepares requests for one model, in one thread at a time. Lengths in tokens."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, context_length: int, dimensions: int, prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._dimensions = dimensions
        self._prompt = prompt

    def prepare(self, number: int, request: InferenceRequest, arrived: float) -> Job | MeshError:
        """Check and tokenise. Never raises."""
        try:
            return self._job(number, request, arrived)
        except MeshError as error:
            return error
        except Exception:
            _logger.exception("request %s could not be prepared", request.request_id)
            return BackendFailed("the inputs could not be prepared for the model; see the worker's log")

    def _job(self, number: int, request: InferenceRequest, arrived: float) -> Job:
        if request.task != "embedding":
            raise BadRequest(
                f"this model makes embeddings, it does not do the task {request.task}; send it to /v1/embeddings",
                code="unsupported_task",
                param="model",
            )
        inputs = request.inputs or []
        self._check_amount(len(inputs), request.dimensions)
        return Job(
            number=number,
            inputs=[self._ids(index, one) for index, one in enumerate(inputs)],
            dimensions=request.dimensions,
            priority=request.priority,
            deadline=arrived + (math.inf if request.deadline_ms is None else request.deadline_ms / 1000),
            arrived=arrived,
        )

    def _check_amount(self, count: int, dimensions: int | None) -> None:
        if not 1 <= count <= MAX_INPUTS:
            raise BadRequest(f"there are {count} inputs; 1 to {MAX_INPUTS} are allowed", param="input")
        if dimensions is not None and not 1 <= dimensions <= self._dimensions:
            raise BadRequest(
                f"vectors of this model have {self._dimensions} dimensions; ask for 1 to so many", param="dimensions"
            )
        if count * (dimensions or self._dimensions) * FLOAT_SIZE > MAX_BYTES:
            raise BadRequest(
                f"the vectors of {count} inputs take more than {MAX_BYTES} bytes; send fewer inputs at once",
                code="answer_too_large",
                param="input",
            )

    def _ids(self, index: int, one: str | list[int]) -> list[int]:
        ids = list(self._tokenizer(self._prompt + one).input_ids) if isinstance(one, str) else list(one)
        if not ids:
            raise BadRequest(f"input {index} is empty; there is nothing to embed", param="input")
        if len(ids) > self._context_length:
            raise too_long(index, len(ids), self._context_length)
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise BadRequest(f"token id {token} is not in the vocabulary of {self._vocabulary}", param="input")
        return ids
