"""Conversations as text, by the tokenizer's chat template, and which characters of it the assistant writes.

Rendering is transformers' own (`apply_chat_template`), so the text is what a served model is asked with. Which of it is
learnt comes from the template's `{% generation %}` marks where it has them. Otherwise each turn is found by rendering
prefixes: it starts where the conversation before it, with the prompt for an answer, ends, and it ends with the
conversation up to it, less the white space after its closing special token. That holds only where rendering more turns
leaves the earlier text as it is; a template that rewrites earlier turns is refused, with what it rewrites.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hayless.core.errors import RequestError
from hayless.data.chats import Conversation, Message

PLAIN = files("hayless.data").joinpath("plain_chat.jinja").read_text(encoding="utf-8").strip()
"""The template of tokenizers without one: a question and its answer read as in `hayless.data.examples.instruction`."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 48


class Refused(ValueError):
    """Why a conversation cannot be rendered or its turns not be found; the caller adds which conversation."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and the characters [start, end) of it that are learnt, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate:
    """How a tokenizer's conversations become text: by its own template, or by the plain one where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._specials = tuple(
            sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        )

    def render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, prompt: bool = False) -> str:
        """The text of `messages`, with what stands before an answer at its end where it is to be a `prompt`.

        Refused where the template refuses the messages (roles in an order it does not know, for one).
        """
        with _refusals():
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools,  # type: ignore[arg-type]
                chat_template=self._source(tools),
                add_generation_prompt=prompt,
                tokenize=False,
            )
        assert isinstance(text, str)
        return text

    def rendered(self, conversation: Conversation) -> Rendered:
        """A conversation as text with its learnt parts. Refused where they cannot be found."""
        if _MARKED.search(self._source(conversation.tools)):
            return self._by_marks(conversation)
        return self._by_prefixes(conversation)

    def _source(self, tools: list[dict[str, Any]] | None) -> str:
        """The template's text; a tokenizer may have several, one of them for conversations with tools."""
        if not self._tokenizer.chat_template:
            return PLAIN
        found: str = self._tokenizer.get_chat_template(None, tools)
        return found

    def _by_marks(self, conversation: Conversation) -> Rendered:
        settings: dict[str, Any] = dict(self._tokenizer.special_tokens_map)
        with _refusals():
            # What apply_chat_template calls, which does not give the marks' places in the text.
            found: Any = render_jinja_template(
                conversations=[conversation.messages],
                tools=conversation.tools,  # type: ignore[arg-type]
                chat_template=self._source(conversation.tools),
                return_assistant_tokens_mask=True,
                **settings,
            )
        [text], [marks] = found
        turns = [at for at, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if len(marks) == len(turns):
            for at, (start, end) in zip(turns, marks, strict=True):
                said = (conversation.messages[at].get("content") or "").strip()
                if said not in text[start:end]:
                    raise Refused(f"the template's {{% generation %}} marks around message {at} do not hold its text")
            marks = [mark for at, mark in zip(turns, marks, strict=True) if at in conversation.learnt]
        elif conversation.learnt != turns:
            raise Refused(
                f"only some turns are to be learnt, and the template's {{% generation %}} marks ({len(marks)}) are not"
                f" one for each of the assistant's {len(turns)} turns"
            )
        return Rendered(text, tuple((start, end) for start, end in marks if start < end))

    def _by_prefixes(self, conversation: Conversation) -> Rendered:
        messages, tools = conversation.messages, conversation.tools
        text = self.render(messages, tools)
        spans = []
        for at in conversation.learnt:
            if at == 0:
                raise Refused("nothing stands before the assistant's first message, so where it starts is not known")
            before = self.render(messages[:at], tools, prompt=True)
            upto = text if at == len(messages) - 1 else self.render(messages[: at + 1], tools)
            if not text.startswith(before):
                history = self.render(messages[:at], tools)
                if text.startswith(history):
                    raise Refused(
                        f"its chat template starts an answer with {_shown(before[len(history) :])}, which a finished"
                        f" answer (message {at}) does not start with: {_shown(text[len(history) :])}"
                    )
                raise Refused(_rewritten(before, text, at - 1))
            if not text.startswith(upto):
                raise Refused(_rewritten(upto, text, at))
            if len(upto) <= len(before):
                raise Refused(f"its chat template leaves out message {at}")
            spans.append((len(before), self._closing(upto, len(before))))
        return Rendered(text, tuple(spans))

    def _closing(self, text: str, start: int) -> int:
        """Where a turn ends that starts at `start`: behind its closing special token, else at the end of the text."""
        bare = text.rstrip()
        return len(bare) if len(bare) > start and bare.endswith(self._specials) else len(text)


@contextmanager
def _refusals() -> Iterator[None]:
    """What a template raises as a refusal in its own words."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise Refused(f"the chat template refuses it: {' '.join(str(error).split())[:200]}") from None


def refuse(found: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> None:
    """RequestError when anything was refused: names several conversations with their reasons and counts all."""
    if not found:
        return
    shown = "\n  ".join(f"{name}: {reason}" for name, reason in found[:5])
    more = f"\n  … and {len(found) - 5} more" if len(found) > 5 else ""
    whose = "the tokenizer's" if tokenizer.chat_template else "the plain"
    raise RequestError(
        f"{len(found)} conversation{'s' * (len(found) > 1)} cannot be learnt from with {whose} chat template:"
        f"\n  {shown}{more}",
        hint="Learn the last turn only (turns: last), cut chats into one row a turn, or use a template that marks the"
        " assistant's turns with {% generation %}.",
    )


def _rewritten(part: str, text: str, at: int) -> str:
    pairs = enumerate(zip(part, text, strict=False))
    where = next((place for place, (one, other) in pairs if one != other), min(len(part), len(text)))
    return (
        f"its chat template rewrites earlier turns: up to message {at} it writes {_shown(part[where:])}, but"
        f" {_shown(text[where:])} once later messages follow"
    )


def _shown(text: str) -> str:
    return repr(text[:_SHOWN] + "…" if len(text) > _SHOWN else text)
