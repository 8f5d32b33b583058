"""`hayless generate` writes what the engine makes, and nothing else, to standard output."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hayless.cli.generate import _prompt, generate
from hayless.cli.serve import serve
from hayless.core.errors import RequestError
from hayless.decode import engine
from hayless.decode.options import SamplingOptions
from tests.cli.models import CONTEXT, model, raised, run, saved, tokenizer

PROMPT = "row 5: the quick fox, "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def _expected(prompt: str = PROMPT, **options: Any) -> engine.Generation:
    return engine.Engine(model(), tokenizer()).generate([prompt], SamplingOptions(**options))[0]


def test_the_text_alone_is_on_standard_output(folder: str) -> None:
    found = run(generate, folder, "--prompt", PROMPT, "--tokens", "12")
    assert (found.exit_code, found.stdout, found.stderr) == (0, _expected(max_tokens=12).text, "")


def test_options_reach_the_engine(folder: str) -> None:
    wanted = {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "min_p": 0.01, "seed": 3}
    arguments = [text for name, value in wanted.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    found = run(generate, folder, "--prompt", PROMPT, "--tokens", "20", "--ignore-end", *arguments, "--json")
    document = json.loads(found.stdout)
    expected = _expected(max_tokens=20, ignore_end=True, **wanted)
    assert document["tokens"] == list(expected.tokens) and document["text"] == expected.text
    assert document["logprobs"] == pytest.approx(expected.logprobs)
    assert document["options"] == SamplingOptions(max_tokens=20, ignore_end=True, **wanted).model_dump(mode="json")
    other = run(generate, folder, "--prompt", PROMPT, "--tokens", "20", "--temperature", "0.9", "--seed", "4", "--json")
    assert json.loads(other.stdout)["tokens"] != document["tokens"]


def test_a_stop_string_ends_the_text(folder: str) -> None:
    whole = _expected(max_tokens=20).text
    stop = whole[4:6]
    found = json.loads(run(generate, folder, "--prompt", PROMPT, "--stop", "§", "--stop", stop, "--json").stdout)
    assert found["finish"] == "stop" and found["text"] == whole[: whole.index(stop)]


def test_figures_are_on_standard_error(folder: str) -> None:
    found = run(generate, folder, "--prompt", PROMPT, "--tokens", "8", "--stats", "--backend", "modules")
    assert found.stdout == _expected(max_tokens=8).text
    count = len(tokenizer()(PROMPT)["input_ids"])
    for words in (f"{count} tokens", "8 tokens", "first token", "tokens/s", "number of tokens asked for", "modules"):
        assert words in found.stderr
    document = json.loads(run(generate, folder, "--prompt", PROMPT, "--tokens", "8", "--json").stdout)
    assert (document["prompt_tokens"], document["finish"], document["backend"]) == (count, "length", "program")
    assert document["ms_per_token"] == pytest.approx(1000 / document["tokens_per_second"]) and document["reason"]
    assert document["first_token_seconds"] > 0


def test_a_single_token_has_no_rate(folder: str) -> None:
    document = json.loads(run(generate, folder, "--prompt", PROMPT, "--tokens", "1", "--json").stdout)
    assert document["ms_per_token"] is None and len(document["tokens"]) == 1
    assert run(generate, folder, "--prompt", PROMPT, "--tokens", "1", "--stats").exit_code == 0


def test_prompts_come_from_pipes_and_files_as_they_are(folder: str, tmp_path: Path) -> None:
    text = "row 7: é\n"
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    expected = _expected(text, max_tokens=6).text
    for arguments, stdin in (
        ([], text.encode()),
        (["--prompt", "-"], text.encode()),
        (["--prompt-file", str(tmp_path / "prompt.txt")], None),
    ):
        assert run(generate, folder, "--tokens", "6", *arguments, stdin=stdin).stdout == expected
    assert run(generate, folder, "--tokens", "6", "--prompt", "").stdout == _expected("", max_tokens=6).text


def test_the_end_of_the_context_is_said(folder: str) -> None:
    document = json.loads(run(generate, folder, "--prompt", PROMPT, "--tokens", "500", "--ignore-end", "--json").stdout)
    assert document["finish"] == "context" and document["prompt_tokens"] + len(document["tokens"]) == CONTEXT


@pytest.mark.parametrize("json_wanted", [False, True])
def test_an_interrupt_keeps_what_is_there(folder: str, monkeypatch: pytest.MonkeyPatch, json_wanted: bool) -> None:
    real = engine.Engine.stream
    pieces = [piece.text for piece in real(engine.Engine(model(), tokenizer()), PROMPT, SamplingOptions(temperature=1))]
    at = next(number for number, text in enumerate(pieces) if text) + 2

    def interrupted(self: engine.Engine, *arguments: Any) -> Iterator[engine.Piece]:
        for number, piece in enumerate(real(self, *arguments)):
            if number == at:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(engine.Engine, "stream", interrupted)
    found = run(
        generate, folder, "--prompt", PROMPT, "--temperature", "1", "--stats", *(["--json"] if json_wanted else [])
    )
    assert found.exit_code == 130
    if json_wanted:
        document = json.loads(found.stdout)
        assert document["finish"] == "interrupted" and len(document["tokens"]) == at
    else:
        assert found.stdout == "".join(pieces[:at]) and "Ctrl-C" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "0"], "--tokens = 0"),
        (["--tokens", "x"], "--tokens: .*whole number"),
        (["--temperature", "-1"], "--temperature = -1"),
        (["--temperature", "nan"], "--temperature = nan"),
        (["--top-p", "0"], "--top-p = 0"),
        (["--min-p", "2"], "--min-p = 2"),
        (["--top-k", "-1"], "--top-k = -1"),
        (["--seed", "-1"], "--seed = -1"),
        (["--stop", ""], "stop strings must not be empty"),
        (["--prompt-file", "x.txt"], "both given"),
        (["--backend", "fast"], "backend = 'fast'"),
        (["--backend", "graphs"], "graphs.*cpu"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--dtype", "int4"], "dtype = 'int4'"),
    ],
)
def test_impossible_options_are_refused(folder: str, arguments: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        raised(run(generate, folder, "--prompt", PROMPT, *arguments))


def test_impossible_prompts_are_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin1"))
    for arguments, stdin, words in (
        (["--prompt-file", str(tmp_path / "latin.txt")], None, "not UTF-8"),
        (["--prompt-file", str(tmp_path / "none.txt")], None, "cannot be read"),
        ([], b"caf\xe9", "Standard input is not UTF-8 .at byte 3"),
        ([], b"", "Standard input is empty"),
        (["--prompt", PROMPT * 20], None, f"context holds {CONTEXT}"),
    ):
        with pytest.raises(RequestError, match=words):
            raised(run(generate, folder, *arguments, stdin=stdin))
    with pytest.raises(RequestError, match="no folder"):
        raised(run(generate, str(tmp_path / "none"), "--prompt", PROMPT))


def test_nobody_is_left_waiting_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    with pytest.raises(RequestError, match="no text to continue"):
        _prompt(None, None)


def test_reward_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="reward model"):
        raised(run(generate, saved(tmp_path / "judge", reward=True), "--prompt", PROMPT))


@pytest.mark.parametrize("draft", [["--lookup"], ["--self-draft", "--draft-layers", "1"], ["--draft"]])
def test_drafts_leave_the_text_as_it_is(folder: str, draft: list[str]) -> None:
    draft = [*draft, folder] if draft == ["--draft"] else draft
    arguments = ["--prompt", PROMPT, "--tokens", "20", *draft, "--draft-tokens", "3", "--no-preflight"]
    expected = _expected(max_tokens=20)
    found = run(generate, folder, *arguments, "--dtype", "float32", "--stats")
    assert found.stdout == expected.text and "tokens a pass" in found.stderr and "limit" in found.stderr
    document = json.loads(run(generate, folder, *arguments, "--dtype", "float32", "--json").stdout)
    assert document["tokens"] == list(expected.tokens)
    about = document["speculation"]
    assert about["draft"] == draft[-1].removeprefix("--") or (draft[0] == "--self-draft" and about["draft"] == "self")
    assert about["tokens"] == 3 and 1 <= about["tokens_a_pass"] <= 4 and about["preflights"] == []


def test_the_preflight_says_what_it_found(folder: str) -> None:
    found = run(generate, folder, "--prompt", PROMPT, "--tokens", "40", "--ignore-end", "--lookup")
    assert (
        found.exit_code == 0 and "Speculation is o" in found.stderr and "of a step" in found.stderr.replace("\n", " ")
    )


def test_what_is_wrong_about_drafts_is_said(folder: str) -> None:
    for arguments, words in (
        (["--lookup", "--self-draft"], "exclude each other"),
        (["--draft-tokens", "3"], "--draft-tokens is given without a draft"),
        (["--no-preflight"], "--no-preflight is given without a draft"),
        (["--lookup", "--draft-layers", "1"], "--draft-layers goes with --self-draft"),
        (["--lookup", "--draft-tokens", "17"], "whole number from 1 to 16, or auto"),
        (["--self-draft", "--draft-layers", "2"], "fewer than the model's 2"),
        (["--draft", "nowhere"], "no folder"),
    ):
        with pytest.raises(RequestError, match=words):
            raised(run(generate, folder, "--prompt", PROMPT, *arguments))
    with pytest.raises(RequestError, match="--self-draft and --adapters exclude each other"):
        raised(run(serve, folder, "--self-draft", "--adapters", folder))
    with pytest.raises(RequestError, match="--adapter-slots and --adapter-rank are for --adapters"):
        raised(run(serve, folder, "--adapter-rank", "4"))


def test_tokens_leave_early_and_their_layers_are_drawn(folder: str, tmp_path: Path) -> None:
    asked = ["--prompt", PROMPT, "--tokens", "6", "--ignore-end", "--exit", "softmax", "--exit-layers", "1"]
    picture = tmp_path / "layers.svg"
    found = run(generate, folder, *asked, "--exit-threshold", "0", "--stats", "--exit-trace", str(picture))
    assert found.exit_code == 0 and "softmax ≥ 0: 1.17 of 2 layers a token" in found.stderr
    assert "1.17 of 2 layers a token" in picture.read_text(encoding="utf-8")
    document = json.loads(run(generate, folder, *asked, "--exit-threshold", "1", "--json").stdout)
    assert document["tokens"] == list(_expected(max_tokens=6, ignore_end=True).tokens)
    early = document["early_exit"]
    assert (early["threshold"], early["mean_layer"], early["layers"]) == (1, 2, [[2] * 6])
    texts = tmp_path / "text.txt"
    texts.write_text("".join(f"row {number}: the quick fox, {number}\n" for number in range(200)), encoding="utf-8")
    wanted = ["--exit-risk", "0.9", "--exit-text", str(texts), "--exit-heads", "learnt"]
    learnt = run(generate, folder, *asked, *wanted, "--json")
    assert json.loads(learnt.stdout)["early_exit"]["calibration"]["risk"] == 0.9 and "Early exit" in learnt.stderr


def test_the_cache_is_held_in_few_bits(folder: str) -> None:
    asked = ["--prompt", PROMPT, "--tokens", "12", "--ignore-end", "--cache", "kv:8", "--cache-group", "4"]
    document = json.loads(run(generate, folder, *asked, "--cache-residual", "64", "--json").stdout)
    assert document["tokens"] == list(_expected(max_tokens=12, ignore_end=True).tokens)
    assert document["cache"] == {"method": "kv", "bits": 8, "group_size": 4, "residual": 64}
    found = run(generate, folder, *asked, "--cache-residual", "4", "--stats")
    assert found.exit_code == 0 and "8 bits but for the last 4 tokens" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cache-group", "4"], "--cache-group is given without --cache"),
        (["--cache", "kv:3"], "--cache = 'kv:3' is not possible; allowed: kv:8, kv:4, kv:2"),
        (["--cache", "kv:4", "--cache-residual", "0"], "--cache-residual = 0"),
        (["--cache", "kv:4", "--cache-residual", "40"], "no multiple of group_size 32"),
        (["--cache", "kv:4", "--lookup"], "excludes drafts and early exits"),
    ],
)
def test_caches_that_cannot_be_are_refused(folder: str, arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        raised(run(generate, folder, "--prompt", PROMPT, *arguments))
    assert message in str(caught.value)
    with pytest.raises(RequestError):
        raised(run(serve, folder, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exit-risk", "0.1"], "--exit-risk is given without --exit"),
        (["--exit-trace", "x.svg"], "--exit-trace is given without --exit"),
        (["--exit-heads", "learnt"], "--exit-heads is given without --exit"),
        (["--exit", "sure"], "--exit = 'sure' is not possible"),
        (["--exit", "softmax", "--exit-trace", "x.pdf"], "a file that ends in .png or .svg"),
        (["--exit", "softmax", "--exit-risk", "0.1", "--exit-threshold", "1"], "exclude each other"),
        (["--exit", "softmax", "--exit-risk", "0.1"], "risk needs text"),
        (["--exit", "softmax", "--exit-layers", "2"], "fewer than the model's 2 layers"),
        (["--exit", "softmax", "--lookup"], "A draft and early exits exclude each other"),
    ],
)
def test_exits_that_cannot_be_are_refused(folder: str, arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        raised(run(generate, folder, "--prompt", PROMPT, *arguments))
    assert message in str(caught.value)
