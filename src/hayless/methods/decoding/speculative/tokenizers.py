"""A draft and its target must mean the same by every token."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import RequestError

_SHOWN = 3
_HINT = "Take a draft that was trained with the target's tokenizer; lookup and self always have it."


def check_same(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    target_tokenizer: PreTrainedTokenizerBase | None,
    draft_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """RequestError, with what differs, where a token of one is not the same token of the other.

    Without both tokenizers, the models must have as many tokens.
    """
    if target_tokenizer is None or draft_tokenizer is None:
        sizes = target.config.vocab_size, draft.config.vocab_size
        if sizes[0] != sizes[1]:
            raise RequestError(f"The draft has {sizes[1]} tokens, the target {sizes[0]}.", hint=_HINT)
        return
    ours, theirs = (
        {number: text for text, number in one.get_vocab().items()} for one in (target_tokenizer, draft_tokenizer)
    )
    numbers = [number for number in sorted(ours.keys() | theirs.keys()) if ours.get(number) != theirs.get(number)]
    if numbers:
        shown = "; ".join(
            f"{number} is {_named(ours.get(number))} in the target and {_named(theirs.get(number))} in the draft"
            for number in numbers[:_SHOWN]
        )
        raise RequestError(
            f"The draft's tokenizer is not the target's: {len(numbers)} of {len(ours)} tokens differ ({shown}"
            f"{'; …' if len(numbers) > _SHOWN else ''}).",
            hint=_HINT,
        )


def _named(token: str | None) -> str:
    return "missing" if token is None else repr(token)
