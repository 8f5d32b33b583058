"""The server as its clients see it: OpenAI's own package, many at once, and those who misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

# First: it skips all of this where a package is missing.
from tests.serve.serving import NAME, client, quiet, said_by, serving  # isort: skip

import openai

from hayless.core.registry import configure
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.serve.service import Service

_TEN = SamplingOptions(max_tokens=10)
PROMPTS = [f"def f{number}(" for number in range(200)]


@pytest.fixture(scope="module")
def server(folders: Path) -> Iterator[tuple[str, Service]]:
    with serving(root=folders) as found:
        yield found


@pytest.fixture(scope="module")
def url(server: tuple[str, Service]) -> str:
    return server[0]


def post(body: bytes, path: str = "/v1/completions", headers: str = "") -> bytes:
    """A request written by hand; `headers` may say how long its body is, or claim to."""
    if "Transfer-Encoding" not in headers and "Content-Length" not in headers:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}\r\n".encode() + body


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def raw(url: str, body: bytes, *, path: str = "/v1/completions", headers: str = "") -> tuple[int, bytes]:
    """What a hand-made request is answered."""
    with connected(url) as connection:
        connection.sendall(post(body, path, f"Connection: close\r\n{headers}"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    start, _, rest = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), rest


def test_completions_are_the_engines(url: str, alone: Engine) -> None:
    api = client(url)
    assert [model.id for model in api.models.list()] == [NAME, "legal", "medical"]
    assert api.models.retrieve(NAME).owned_by == "hayless"
    wanted = alone.generate(PROMPTS[:2], SamplingOptions(max_tokens=12))
    found = api.completions.create(model=NAME, prompt=PROMPTS[:2], max_tokens=12, temperature=0, logprobs=0)
    assert [choice.text for choice in found.choices] == [one.text for one in wanted]
    assert [choice.finish_reason for choice in found.choices] == ["length", "length"]
    assert found.choices[0].logprobs.token_logprobs == pytest.approx(wanted[0].logprobs, abs=1e-4)
    assert "".join(found.choices[0].logprobs.tokens) == wanted[0].text
    assert found.usage.prompt_tokens == sum(one.prompt_tokens for one in wanted)
    assert found.usage.completion_tokens == 24
    ids = alone.encode(PROMPTS[0])
    again = api.completions.create(model=NAME, prompt=ids, max_tokens=12, temperature=0)
    assert again.choices[0].text == wanted[0].text


def test_streams_say_the_same(url: str) -> None:
    api = client(url)
    asked = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": 20, "n": 3, "seed": 5}
    whole = api.completions.create(**asked)
    parts = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = dict.fromkeys(range(3), "")
    for part in parts:
        for choice in part.choices:
            said[choice.index] += choice.text
    assert list(said.values()) == [choice.text for choice in whole.choices]
    assert len(set(said.values())) > 1
    assert parts[-1].usage == whole.usage and whole.usage.completion_tokens == 60


def test_chats_follow_the_template_and_stop(url: str, alone: Engine) -> None:
    api = client(url)
    asked = {"model": NAME, "messages": [{"role": "user", "content": "What is a list?"}], "seed": 1}
    whole = api.chat.completions.create(**asked, max_completion_tokens=20, logprobs=True)
    parts = list(api.chat.completions.create(**asked, max_completion_tokens=20, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant" and parts[-1].choices[0].finish_reason == "length"
    assert len(whole.choices[0].logprobs.content) == 20
    text = whole.choices[0].message.content
    stopped = api.chat.completions.create(**asked, max_tokens=20, stop=text[3:8])
    assert stopped.choices[0].message.content == text[: text.index(text[3:8])]
    assert stopped.choices[0].finish_reason == "stop"


def test_the_likeliest_tokens_are_named(url: str, alone: Engine) -> None:
    api, prompt = client(url), PROMPTS[0]
    [wanted] = alone.generate([prompt], SamplingOptions(max_tokens=4, top_logprobs=3))
    words = [[alone.tokenizer.decode([token]) for token, _ in top] for top in wanted.tops]
    asked = {"model": NAME, "prompt": prompt, "max_tokens": 4}
    found = api.completions.create(**asked, temperature=0, logprobs=3).choices[0].logprobs
    assert [list(top) for top in found.top_logprobs] == words
    for top, expected in zip(found.top_logprobs, wanted.tops, strict=True):
        assert list(top.values()) == pytest.approx([value for _, value in expected], abs=1e-4)
    drawn = api.completions.create(**asked, temperature=2, seed=1, logprobs=1).choices[0].logprobs
    for token, value, top in zip(drawn.tokens, drawn.token_logprobs, drawn.top_logprobs, strict=True):
        assert top[token] == value and max(top.values()) >= value and len(top) <= 2
    chat = api.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "x"}], max_tokens=2, logprobs=True, top_logprobs=2
    )
    for entry in chat.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert bytes(entry.top_logprobs[0].bytes).decode() == entry.top_logprobs[0].token


def test_drafts_change_no_text_and_nobody_gets_anothers(alone: Engine) -> None:
    options = SamplingOptions(max_tokens=6)
    wanted = [one.text for one in alone.generate(PROMPTS[:24], options, batch_size=24)]
    drafts = configure("speculative", draft="lookup", tokens=3, preflight=False)
    with serving(drafts=drafts, rows=4) as (address, service), ThreadPoolExecutor(12) as pool:
        api = client(address)

        def ask(prompt: str) -> str:
            found = api.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0, logprobs=1)
            assert len(found.choices[0].logprobs.top_logprobs) == 6
            return found.choices[0].text

        assert list(pool.map(ask, PROMPTS[:24])) == wanted
        assert service.engine.draft.tally.kept > 0


def test_many_at_once_get_their_own(url: str, alone: Engine) -> None:
    options = SamplingOptions(max_tokens=6)
    wanted = [one.text for one in alone.generate(PROMPTS, options, batch_size=32)]

    async def ask() -> list[str]:
        api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

        async def one(prompt: str) -> str:
            found = await api.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0)
            return found.choices[0].text

        return await asyncio.gather(*(one(prompt) for prompt in PROMPTS))

    assert asyncio.run(ask()) == wanted


def test_adapters_are_models_of_their_own(url: str, folders: Path, alone: Engine) -> None:
    wanted = {NAME: alone.generate(["class A"], _TEN)[0].text}
    wanted |= {name: said_by(folders / name, alone.tokenizer) for name in ("legal", "medical")}
    assert len(set(wanted.values())) == 3

    async def ask(models: list[str]) -> list[str]:
        api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

        async def one(model: str) -> str:
            found = await api.completions.create(model=model, prompt="class A", max_tokens=10, temperature=0)
            return found.choices[0].text

        return await asyncio.gather(*(one(model) for model in models))

    models = ["legal", NAME, "medical", "legal", NAME, "medical", NAME]
    assert asyncio.run(ask(models)) == [wanted[model] for model in models]


def test_who_hangs_up_gives_the_row_back(url: str) -> None:
    for stream in (True, False):
        body = {"model": NAME, "prompt": "x", "max_tokens": 250, "stream": stream, "ignore_end": True, "n": 8}
        with connected(url) as connection:
            connection.sendall(post(json.dumps(body).encode()))
            if stream:
                assert b"200" in connection.recv(100)
            else:
                time.sleep(0.1)
        quiet(url)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "JSON"),
        (b"", 400, "body"),
        (b"[1]", 400, "body"),
        (b'{"model": "small"}', 400, "prompt"),
        (b'{"model": "small", "prompt": {"a": 1}}', 400, "prompt"),
        (b'{"model": "small", "prompt": "x", "max_tokens": 0}', 400, "max_tokens"),
        (b'{"model": "small", "prompt": "x", "temperature": NaN}', 400, "temperature"),
        (b'{"model": "small", "prompt": "x", "surprise": 1}', 400, "surprise"),
        (b'{"model": "small", "prompt": "x", "logprobs": 6}', 400, "logprobs"),
        (b'{"model": "small", "prompt": "x", "stop": ""}', 400, "stop"),
        (b'{"model": "small", "prompt": [99999]}', 400, "99999"),
        (b'{"model": "small", "prompt": "x", "n": 17}', 400, "17"),
        (b'{"model": "smal", "prompt": "x"}', 404, "'small'"),
        (b'{"model": "small", "prompt": "\xff"}', 400, ""),
        (b'{"model": "small", "prompt": "' + b"a b " * 300 + b'"}', 400, "context"),
    ],
)
def test_bad_requests_are_named(url: str, body: bytes, status: int, says: str) -> None:
    found, answer = raw(url, body)
    error = json.loads(answer)["error"]
    assert found == status and says in error["message"] and error["type"] == "invalid_request_error"


def test_chats_that_cannot_be_asked(url: str) -> None:
    for messages in ([], [{"role": "king", "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]):
        found, answer = raw(
            url, json.dumps({"model": NAME, "messages": messages}).encode(), path="/v1/chat/completions"
        )
        assert found == 400 and "messages" in json.loads(answer)["error"]["message"]


def test_a_body_that_is_too_large_is_not_read() -> None:
    with serving(body=2048) as (url, _):
        assert raw(url, b" " * 3000)[0] == 413
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        assert raw(url, chunk * 3 + b"0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n")[0] == 413
        assert raw(url, b"x", headers="Content-Length: 99999999999999\r\n")[0] == 413
        assert raw(url, b'{"model": "small", "prompt": "x", "max_tokens": 1}')[0] == 200


def test_only_who_has_the_token() -> None:
    with serving(token="open-sesame") as (url, _):
        assert client(url, "open-sesame").models.list().data
        for key in (
            "open-sesam",
            "open-sesame2",
            "\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1").decode("latin-1"),
        ):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                client(url, key).models.list()
        assert client(url)._client.get(f"{url}/health").status_code == 200


def test_a_full_queue_a_late_answer_and_a_stop() -> None:
    asked = {"model": NAME, "prompt": "x", "max_tokens": 250, "extra_body": {"ignore_end": True}}
    with serving(rows=1, queue=0, timeout=0.3) as (url, service):
        with pytest.raises(openai.RateLimitError):
            client(url).completions.create(**asked, n=2)
        slow = threading.Event()
        original = service._turn
        service._turn = lambda running: (slow.wait(0.02), original(running))[1]
        with pytest.raises(openai.InternalServerError, match=r"longer than 0\.3 seconds"):
            client(url).completions.create(**asked)
        quiet(url)
        with pytest.raises(openai.APIError, match=r"longer than 0\.3 seconds"):
            list(client(url).completions.create(**asked, stream=True))
        quiet(url)
        stream = client(url).completions.create(**asked, stream=True)
        next(iter(stream))
        service.stop(0)
        assert not service._thread.is_alive()
        with pytest.raises(openai.InternalServerError, match="being stopped"):
            client(url).completions.create(**asked)


def test_a_step_that_fails_ends_who_runs_and_nobody_else() -> None:
    with serving(rows=2) as (url, service):
        original = service._turn

        def fails(running: object) -> object:
            if service._waiting:
                original(running)
                service._turn = original
                raise MemoryError("no more")
            return original(running)

        service._turn = fails
        with pytest.raises(openai.InternalServerError, match="no more"):
            client(url).completions.create(model=NAME, prompt="x", max_tokens=50)
        assert client(url).completions.create(model=NAME, prompt="x", max_tokens=3).usage.completion_tokens == 3


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    def ask(url: str, count: int) -> None:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
        for number in range(count):
            body = {"model": NAME, "prompt": f"{number} " * 20, "max_tokens": 2, "ignore_end": True}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()
        connection.close()

    def many(url: str, count: int) -> None:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(ask, [url] * 20, [count // 20] * 20))

    with serving(rows=32) as (url, service):
        process = psutil.Process()
        many(url, 500)
        before = process.memory_info().rss
        many(url, 2000)
        assert process.memory_info().rss - before < 20e6
        assert service.generated == 5000 and service.load == (0, 0)
