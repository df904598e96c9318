"""Text to tokens and back: the tokenizer, the chat template, and answers as they grow.

Rule: the pieces of an answer, put together, are the answer. A character is never cut, text that may
become a stop string is held back, and a stop string itself is never given out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer

from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, InputError
from edgeshard.runtime.ask import ChatMessage
from edgeshard.schemas.model import ModelManifest

_UNFINISHED = "\ufffd"
_ANCHOR_TOKENS = 4  # decoders treat the first token of a text differently, so decode from before it

_PATIENCE_TOKENS = 64  # bytes that are no text are given up behind so many
_UNFINISHED_BYTES = 3  # of a character of four


class TextModel:
    """What a model's files say about text."""

    def __init__(
        self, tokenizer: bytes, chat_template: str | None, special_tokens: dict[str, str]
    ) -> None:
        """Read the tokenizer and the template.

        Raises:
            ArtifactError: the tokenizer cannot be read.
        """
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode("utf-8"))
        except Exception as error:  # the binding raises plain Exception
            raise ArtifactError(f"the tokenizer cannot be read: {error}; compile again") from error
        self._template = chat_template
        self._special_tokens = special_tokens

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Tokens of a text to continue, with those that the tokenizer puts in front."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Tokens of a conversation; the template alone says which special tokens are in it.

        Raises:
            InputError: the model has no template, or it refuses the conversation.
        """
        if self._template is None:
            raise InputError("the model has no chat template; give raw text (--raw)")
        text = render_chat(self._template, messages, self._special_tokens)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def load_text(store: Store, manifest: ModelManifest) -> TextModel:
    """Tokenizer and template of a model in a store.

    Raises:
        ArtifactError: it has no tokenizer, or a blob is missing or changed.
    """
    if manifest.tokenizer is None:
        raise ArtifactError(f"model {manifest.name} has no tokenizer; compile it with one")
    template = manifest.chat_template
    return TextModel(
        store.read(manifest.tokenizer),
        None if template is None else store.read(template).decode("utf-8"),
        manifest.special_tokens,
    )


def render_chat(
    template: str, messages: Sequence[ChatMessage], special_tokens: dict[str, str]
) -> str:
    """Text of a conversation, ready for the answer.

    The environment is the one that chat templates are written for: sandboxed, blocks trimmed, with
    `raise_exception`, `strftime_now` and a plain `tojson`.

    Raises:
        InputError: the template is no template, or it refuses the conversation.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    plain = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return environment.from_string(template).render(
            messages=plain, add_generation_prompt=True, tools=None, documents=None, **special_tokens
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses this conversation: {error}") from error


class Answer:
    """The text of one growing answer."""

    def __init__(self, model: TextModel, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._model = model
        self._tokens = list(prompt[-_ANCHOR_TOKENS:])
        self._prefix = 0  # decoding starts here,
        self._read = len(self._tokens)  # and what lies before this was given out,
        self._given = model.decode(self._tokens)  # as this text
        self._stop = tuple(stop)
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            Text to give out, and whether a stop string has come; after one, nothing more comes.
        """
        self._tokens.append(token)
        text = self._model.decode(self._tokens[self._prefix :])
        if text.endswith(_UNFINISHED) and len(self._tokens) - self._read < _PATIENCE_TOKENS:
            num_open = len(text) - len(text.rstrip(_UNFINISHED))
            settled = text[: len(text) - min(num_open, _UNFINISHED_BYTES)]
            new, self._given = settled[len(self._given) :], max(settled, self._given, key=len)
            return self._hold_back(new)
        new = text[len(self._given) :]
        if new:  # behind tokens without text alone, a decoder would take the next one for the first
            self._prefix, self._read = self._read, len(self._tokens)
            self._given = self._model.decode(self._tokens[self._prefix : self._read])
        return self._hold_back(new)

    def flush(self) -> str:
        """Text that is left when the answer ends without a stop string."""
        text = self._model.decode(self._tokens[self._prefix :])
        new, stopped = self._hold_back(text[len(self._given) :])
        held, self._held = self._held, ""
        return new if stopped else new + held

    def _hold_back(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        found = [
            (text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text
        ]
        if found:  # the one that is complete first, so that it does not matter where tokens are cut
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
