"""Text comes out whole: no half characters, no lost spaces, no part of a stop string."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.text import StopStrings, TextStream


def _byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, and one merged pair that ends inside a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    e_acute = "Ã©"  # the two bytes of é in the byte-level alphabet
    vocab = {"<end>": 0} | {letter: number for number, letter in enumerate(letters, 1)}
    pair = ("x", e_acute[0])
    vocab["".join(pair)] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[pair]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", bos_token="<end>")


def _byte_fallback() -> PreTrainedTokenizerFast:
    """Words with a mark for the space before them, and bytes for what has no entry: Llama 2's way."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for piece in ("▁", "▁a", "b", "c", "▁red"):
        vocab[piece] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _byte_of(letter: str) -> int:
    """The byte a letter of GPT-2's byte-level alphabet stands for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if ord(letter) < 256:
        return ord(letter)
    return [byte for byte in range(256) if byte not in visible][ord(letter) - 256]


BYTE_LEVEL, BYTE_FALLBACK = _byte_level(), _byte_fallback()
BY_BYTE = {_byte_of(letter): number for letter, number in BYTE_LEVEL.get_vocab().items() if len(letter) == 1}


def _pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd<>▁"), max_size=30))
def test_characters_are_never_split(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=24))
def test_any_bytes_give_the_text_of_the_whole(content):
    ids = [BY_BYTE[byte] for byte in content]
    assert "".join(_pieces(BYTE_LEVEL, ids)) == content.decode("utf-8", errors="replace")


def test_a_token_may_end_inside_a_character():
    ids = BYTE_LEVEL.encode("axé!", add_special_tokens=False)
    assert len(ids) == 4, "a, x with half of é, the other half, !"
    assert _pieces(BYTE_LEVEL, ids) == ["a", "x", "é", "!", ""]


def test_a_stray_byte_does_not_take_back_what_was_given():
    ids = [0xE4 + 3, 0xBD + 3, 0xA0 + 3, 0x80 + 3]
    assert "".join(_pieces(BYTE_FALLBACK, ids)) == "你\ufffd"


def test_the_space_after_the_prompt_is_kept():
    red, prompt = BYTE_FALLBACK.convert_tokens_to_ids("▁red"), BYTE_FALLBACK.encode("a")
    assert _pieces(BYTE_FALLBACK, [red], tuple(prompt)) == [" red", ""]
    assert _pieces(BYTE_FALLBACK, [1, red, 2, red]) == ["", "red", "", " red", ""]


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab\n", max_size=14),
    st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=14, max_size=14),
)
def test_stop_strings_do_not_depend_on_how_text_is_cut(text, stop, cuts):
    by_end = [(end, text.find(one)) for one in stop for end in range(len(text) + 1) if text[:end].endswith(one)]
    first_end = min((end for end, _ in by_end), default=None)
    expected = text
    if first_end is not None:
        expected = text[: min(first_end - len(one) for one in stop if text[:first_end].endswith(one))]
    stream, given_out, rest, stopped = StopStrings(stop), "", text, False
    for cut in cuts:
        if stopped or not rest:
            break
        piece, stopped = stream.push(rest[:cut])
        given_out, rest = given_out + piece, rest[cut:]
        assert expected.startswith(given_out)
    assert stopped == (first_end is not None)
    assert given_out + ("" if stopped else stream.finish()) == expected


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A model over the byte-level vocabulary whose greedy text is not constant."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(BYTE_LEVEL), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.eos_token_id, config.bos_token_id = 0, 0
    return Engine(transformers.LlamaForCausalLM(config).eval(), BYTE_LEVEL)


def test_text_prompts_and_an_empty_one(engine):
    options = SamplingOptions(temperature=1.0, seed=5, max_tokens=20)
    found = engine.generate(["def f(", "", "x"], options)
    assert [one.prompt_tokens for one in found] == [6, 1, 1]
    for one in found:
        assert one.text == BYTE_LEVEL.decode(one.tokens, skip_special_tokens=True)
        assert one.text == "".join(piece.text for piece in engine.stream(_prompt_of(found, one), options))


def _prompt_of(found: list, one: object) -> str:
    return ["def f(", "", "x"][found.index(one)]


def test_a_stop_string_over_several_tokens(engine):
    options = SamplingOptions(temperature=1.0, seed=2, max_tokens=40, ignore_end=True)
    whole = engine.generate(["ab"], options)[0]
    assert len(whole.text) > 30
    stop = whole.text[10:13]
    cut = engine.generate(["ab"], options.model_copy(update={"stop": (stop, "never there")}))[0]
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)] and len(cut.tokens) < 40


def test_text_held_for_a_stop_string_comes_out_at_the_end(engine):
    options = SamplingOptions(temperature=1.0, seed=2, max_tokens=12, ignore_end=True)
    whole = engine.generate(["ab"], options)[0]
    held = engine.generate(["ab"], options.model_copy(update={"stop": (whole.text[-2:] + "and never this",)}))[0]
    assert held.text == whole.text and held.finish == "length"
