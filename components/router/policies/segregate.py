"""Two classes of request, each served whole by engines of its own: no KV moves between engines.

Long prompts then never stand between the tokens of others, at the price that one pool may be idle
while the other is full. What is heavier on the prompt goes to the prefill engines, all else to the
decode engines; ``placement.py`` says what happens when a pool is empty or full.
"""

from components.router.policies.choice import ClassBounds, Pool
from schemas.request import RequestCard


def pool_of(card: RequestCard, bounds: ClassBounds) -> Pool:
    """By what is left to do: a continuation computes what it has written as well."""
    to_compute = card.prompt_tokens + card.emitted_tokens
    if to_compute > bounds.prompt_tokens or to_compute > bounds.ratio * _to_write(card, bounds):
        return "prefill"
    return "decode"


def _to_write(card: RequestCard, bounds: ClassBounds) -> int:
    """Tokens of all choices. Where no limit is set, those written say nothing of those to come."""
    if not card.output_tokens_given:
        return card.choices * min(bounds.output_tokens, card.output_tokens_max)
    return max(1, card.choices * card.output_tokens_max - card.emitted_tokens)
