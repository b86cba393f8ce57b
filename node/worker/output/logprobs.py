"""How likely the model itself held each token: before penalties, temperature, cuts and grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.messages.inference import Alternative, TokenLogprob

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.output.vocabulary import TokenBytes

MOST_ALTERNATIVES = 20


def token_logprob(row: Tensor, token: int, *, alternatives: int, spelling: TokenBytes) -> TokenLogprob:
    """What to tell of `token`, drawn from the model's `row` of logits."""
    scores = row.double().log_softmax(-1)
    best = scores.topk(alternatives) if alternatives else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprob(
        token=spelling[token],
        logprob=_finite(float(scores[token])),
        top=[Alternative(spelling[each], _finite(score)) for each, score in pairs],
    )


def _finite(score: float) -> float:
    """JSON has no infinity; OpenAI says -9999 for what is next to impossible."""
    return max(score, -9999.0)
