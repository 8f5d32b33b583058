"""Tokenizers of four levels, trained with the `tokenizers` library.

`char`: one Unicode character a token. `word`: words, runs of white space and runs of other signs. `bpe`: byte pairs
(Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016) over bytes, so nothing is unknown.
`unigram`: the language model over pieces of Kudo, Subword Regularization, 2018. All decode to the text they were given,
but for unknown tokens and, at the unigram level, the sign ▁.

Token 0 is `<|end|>`: it ends documents and stands before them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hayless.core import atomic
from hayless.core.errors import FileDamaged, NotSupported, RequestError, bad_value, unknown
from hayless.core.progress import Progress, no_progress
from hayless.data.config import DataConfig
from hayless.data.corpus import corpus, fingerprint

Level = Literal["char", "word", "bpe", "unigram"]
END = "<|end|>"
UNKNOWN = "<unk>"
_SMALLEST = {"char": 3, "word": 3, "bpe": 257, "unigram": 3}
BATCH_CHARACTERS = 4_000_000
"""Of texts that are tokenized at once. With a quarter of it, threads wait for the one that has the longest text."""
_LONG_RUN = re.compile(r"\S{512}|\s{512}")
_NEVER = -10_000.0
"""A log-probability below that of any way to spell a special token by other pieces."""


def train(texts: Iterable[str], level: Level, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries, special ones included. The same texts give the same tokenizer."""
    if level not in _SMALLEST:
        raise unknown("level", level, _SMALLEST)
    if vocab_size < _SMALLEST[level]:
        raise bad_value("vocab_size", vocab_size, allowed=f"at least {_SMALLEST[level]} at level {level}")
    build = {"char": _char, "word": _word, "bpe": _bpe, "unigram": _unigram}[level]
    tokenizer, trainer = build(vocab_size)
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield from _without_long_runs(text)

    tokenizer.train_from_iterator(counted(), trainer)
    if not characters:
        raise RequestError("The texts to train a tokenizer on are empty.", hint="Give some text.")
    if level == "unigram":
        tokenizer.model = _settled(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN if level != "bpe" else None,
        clean_up_tokenization_spaces=False,
    )


def train_tokenizer(
    config: DataConfig, level: Level, vocab_size: int, folder: Path, *, progress: Progress = no_progress
) -> PreTrainedTokenizerBase:
    """A tokenizer trained on the training documents of `config`; kept in `folder` and reused for the same data."""
    name = hashlib.sha256(f"{fingerprint(config, 'lm')}\0{level}\0{vocab_size}".encode()).hexdigest()
    path = folder / f"tokenizer-{level}-{vocab_size}-{name[:16]}"
    atomic.recover(path)
    if not path.is_dir():
        documents = corpus(config, folder, progress=progress).train
        progress("training the tokenizer", 0, 1)
        trained = train((document.text for document in documents), level, vocab_size)
        progress("training the tokenizer", 1, 1)
        save(trained, path)
    return load(path)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer as a Hugging Face folder, whole or not at all."""
    with atomic.folder(folder) as partial:
        tokenizer.save_pretrained(partial)


def load(folder: Path) -> PreTrainedTokenizerBase:
    """Read what `save` wrote; FileDamaged when it cannot be read."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # The tokenizers library raises bare Exception for content it cannot parse.
        raise FileDamaged(
            f"{folder} holds no readable tokenizer: {error}.", hint="Delete it to make it again."
        ) from error
    return found


def begin_token(tokenizer: PreTrainedTokenizerBase, *, required: bool = True) -> int | None:
    """The token that stands before a text: the begin token, else (where one is `required`) the end token."""
    begin: int | None = tokenizer.bos_token_id
    return end_token(tokenizer) if begin is None and required else begin


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text. RequestError for a tokenizer without one: a model could never learn to stop."""
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise RequestError(
            "The tokenizer has no end token, so a model could not learn to stop.", hint="Set eos_token in its files."
        )
    return end


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts. Nothing is added, and a special token spelt out in a text is read as plain text."""
    found: list[list[int]] = _encoded(tokenizer, texts, offsets=False)["input_ids"]
    return found


def encode_with_ends(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids as `encode` gives them, and for each token the bytes of text that the tokens up to it stand for.

    Where a character is split over tokens the count stands still until the last of them. A tokenizer that does
    not tell where its tokens lie (one without a fast backend) is refused with NotSupported.
    """
    _check_fast(tokenizer)
    encoded = _encoded(tokenizer, texts, offsets=True)
    ends = []
    for text, spans in zip(texts, encoded["offset_mapping"], strict=True):
        reached = np.concatenate([[0], np.cumsum(byte_sizes(text))])
        ends.append(reached[clean_ends(_spans(spans), len(text))].tolist())
    return encoded["input_ids"], ends


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[list[int]], list[NDArray[np.int64]]]:
    """Token ids of texts that a chat template wrote, in which special tokens are meant, and the characters (n, 2) that
    each token lies at: as transformers' `apply_chat_template` tokenizes. Raises what `encode_with_ends` raises."""
    if not texts:
        return [], []
    _check_fast(tokenizer)
    encoded = _encoded(tokenizer, texts, offsets=True, split_special=tokenizer.split_special_tokens)
    return encoded["input_ids"], [_spans(spans) for spans in encoded["offset_mapping"]]


def byte_sizes(text: str) -> NDArray[np.int64]:
    """Bytes of each character of a text in UTF-8."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)


def clean_ends(spans: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """For each token at `spans` (n, 2) of a text: the last border of tokens up to its end that cuts no character."""
    starts, ends = spans.T
    if not len(spans):
        return starts
    following = np.append(starts[1:], length)
    reached = np.maximum.accumulate(ends)
    clean = reached <= np.minimum.accumulate(following[::-1])[::-1]
    found: NDArray[np.int64] = np.maximum.accumulate(np.where(clean, reached, 0))
    return found


def _spans(offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.asarray(offsets, dtype=np.int64).reshape(-1, 2)


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise NotSupported(f"{type(tokenizer).__name__} does not say which characters its tokens stand for.")


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, offsets: bool, split_special: bool = True
) -> Any:
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=split_special,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=offsets,
        verbose=False,
    )


def in_batches(texts: Sequence[str]) -> Iterator[range]:
    """Index ranges of some million characters: large enough to use all cores, small enough for memory."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield range(start, index + 1)
            start, size = index + 1, 0
    if start < len(texts):
        yield range(start, len(texts))


def _without_long_runs(text: str) -> Iterator[str]:
    """`text` in parts without long runs: training on byte pairs takes time quadratic in the length of one."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def _words(pattern: str, vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=[END, UNKNOWN], show_progress=False
    )


def _char(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    return _words(r"[\s\S]", vocab_size)


def _word(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    return _words(r"\s+|\w+|[^\s\w]+", vocab_size)


def _bpe(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _unigram(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+"), behavior="isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[END, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )


def _settled(tokenizer: Tokenizer) -> models.Unigram:
    """A trained unigram model in a fixed order, without the rounding of its training and with special tokens shut out.

    The library sums in an order that changes from process to process, so scores differ in the eleventh digit and pieces
    of equal score change places. Characters that training dropped are put back in such an order too, each 0.0001 above
    the last; here they all get the lowest score. And special tokens have the best score of all, so that a text which
    spells one out would become that token.
    """
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    found = [(piece, score) for piece, score in vocabulary if piece not in (END, UNKNOWN)]
    lowest = min(score for _, score in found)
    put_back = lowest + 1e-4 * (1 + sum(len(piece) == 1 for piece, _ in found))
    pieces = [(piece, round(lowest if len(piece) == 1 and score <= put_back else score, 4)) for piece, score in found]
    pieces.sort(key=lambda entry: (-entry[1], entry[0]))
    return models.Unigram([(END, _NEVER), (UNKNOWN, _NEVER), *pieces], unk_id=1, byte_fallback=False)
