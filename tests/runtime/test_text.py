"""Text: pieces put together are the answer, and a character or a stop string is never cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, processors

from edgeshard.errors import ArtifactError, InputError
from edgeshard.runtime.ask import ChatMessage
from edgeshard.runtime.text import Answer, TextModel
from support.runtime_double import END, byte_tokenizer

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=200)


def model(template: str | None = None, **special_tokens: str) -> TextModel:
    return TextModel(byte_tokenizer().to_str().encode(), template, special_tokens)


BYTES = model()


def pieces(answer: Answer, tokens: Sequence[int]) -> tuple[list[str], bool]:
    given = []
    for token in tokens:
        text, stopped = answer.push(token)
        given.append(text)
        if stopped:
            return given, True
    return [*given, answer.flush()], False


@settings(settings.get_profile("runtime"))
@given(st.text(max_size=30), st.text(max_size=5))
def test_pieces_make_the_text_and_no_character_is_cut(text: str, prompt: str) -> None:
    answer = Answer(BYTES, BYTES.encode_raw(prompt), ())
    given, _ = pieces(answer, text.encode())
    assert "".join(given) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in given)


class Pieces(TextModel):
    """A model whose tokens are any bytes: token i is `pieces[i]`."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self._pieces[token] for token in tokens).decode(errors="replace")


def cut(text: str, places: Sequence[int]) -> list[bytes]:
    """The bytes of a text, cut anywhere."""
    data = text.encode()
    ends = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]


def before_first_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Character by character: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


places = st.lists(st.integers(0, 200), max_size=30)


@settings(settings.get_profile("runtime"))
@given(
    st.text(alphabet="abé€😀", max_size=20),
    st.lists(st.text(alphabet="abé€😀", min_size=1, max_size=4), max_size=3),
    places,
)
def test_an_answer_ends_before_its_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], places: list[int]
) -> None:
    tokens = cut(text, places)
    given, stopped = pieces(Answer(Pieces(tokens), (), stops), range(len(tokens)))
    if not stopped:  # one that the last piece completes is found by what is left
        given, stopped = given, any(stop in text for stop in stops)
    assert ("".join(given), stopped) == before_first_stop(text, stops)


@settings(settings.get_profile("runtime"))
@given(st.text(alphabet="a€😀\ufffd", max_size=40), places)
def test_a_character_is_never_cut_however_tokens_cut_it(text: str, places: list[int]) -> None:
    tokens = cut(text, places)
    given, _ = pieces(Answer(Pieces(tokens), (), ()), range(len(tokens)))
    assert "".join(given) == text


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    answer = Answer(BYTES, (), ["END"])
    assert [answer.push(byte)[0] for byte in b"aENb"] == ["a", "", "", "ENb"]


def test_bytes_that_never_become_a_character_come_out_in_the_end() -> None:
    answer = Answer(BYTES, (), ())
    assert "".join(answer.push(0xFF)[0] for _ in range(30)) != ""


def test_an_end_token_has_no_text() -> None:
    assert Answer(BYTES, (), ()).push(END) == ("", False)


def test_a_leading_space_is_kept_where_the_prompt_goes_on() -> None:
    vocab = {"▁the": 0, "▁capital": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    words = TextModel(tokenizer.to_str().encode(), None, {})
    assert Answer(words, [0], ()).push(1) == (" capital", False)


def test_raw_text_gets_the_tokenizers_own_start_and_a_template_its_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 257)]
    )
    template = "{{ bos_token }}{{ messages[0].content }}"
    text = TextModel(tokenizer.to_str().encode(), template, {"bos_token": "<s>"})
    assert text.encode_raw("a") == (257, 97)
    assert text.encode_chat([ChatMessage("user", "a")]) == (257, 97)


def test_a_template_is_rendered_as_its_authors_expect() -> None:
    template = (
        "{% for m in messages %}\n    {% if m.role == 'x' %}{% continue %}{% endif %}\n"
        "[{{ m.role }}]{{ m.content | tojson }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokens = model(template).encode_chat([ChatMessage("x", "no"), ChatMessage("user", "é<")])
    assert bytes(tokens).decode() == '[user]"é<"\n[assistant]'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only users') }}",
        "{% for %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content.__globals__ }}{{ 1 + 'a' }}",
    ],
)
def test_a_template_that_refuses_or_misbehaves_is_an_input_error(template: str) -> None:
    with pytest.raises(InputError, match="chat template"):
        model(template).encode_chat([ChatMessage("user", "a")])


def test_without_a_template_raw_text_is_asked_for() -> None:
    with pytest.raises(InputError, match="--raw"):
        model().encode_chat([ChatMessage("user", "a")])


def test_a_tokenizer_that_is_none_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="tokenizer"):
        TextModel(b"{}", None, {})
