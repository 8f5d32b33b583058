"""Contenders of serving: hayless's server with its clients in another process, and transformers' generate_batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from parts.decoding import Tokens, judged

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.serve.adapters import Adapters
from hayless.serve.service import Service
from hayless.serve.settings import ServeSettings
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Figure, Prepared

ALONE, GAP, FIRST = "rate, times one client's alone", "gap between tokens, 99th percentile", "first token, median"
_JUDGED = 8
"""Prompts whose answers are computed again in float32."""


@dataclass(frozen=True)
class Serving:
    """`clients` prompts at once, `tokens` tokens each, greedy, past any end. `model` makes the model."""

    model: Callable[[], transformers.PreTrainedModel]
    prompts: Callable[[transformers.PreTrainedModel], Tokens]
    clients: int
    tokens: int

    def hayless(self) -> Prepared:
        """The server over loopback; every client streams."""
        model = self.model()
        prompts = self.prompts(model)
        engine = Engine(model)
        longest = max(map(len, prompts)) + self.tokens
        ask = _clients(_served(engine, ServeSettings(rows=self.clients, tokens=longest)), self.tokens)
        last: dict[str, Any] = {}

        def answer() -> Answer:
            options = SamplingOptions(max_tokens=self.tokens, ignore_end=True)
            found = engine.generate(prompts[:_JUDGED], options)
            return judged(model, prompts[:_JUDGED], [one.tokens for one in found], [one.logprobs for one in found])

        def figures() -> Sequence[Figure]:
            times = np.asarray(last["times"])
            single = min(ask(prompts[:1])["seconds"] for _ in range(2))
            return (
                Figure(ALONE, "×", self.clients * single / last["seconds"], better="higher"),
                Figure(GAP, "ms", float(np.percentile(np.diff(times), 99)) * 1e3),
                Figure(FIRST, "ms", float(np.median(times[:, 0])) * 1e3),
            )

        return Prepared(lambda: last.update(ask(prompts)), answer, figures=figures)

    def generate_batch(self) -> Prepared:
        """transformers' continuous batching, without a server."""
        model = self.model()
        prompts = [list(prompt) for prompt in self.prompts(model)]
        wanted = transformers.GenerationConfig(max_new_tokens=self.tokens, do_sample=False, eos_token_id=-1)

        def run() -> list[list[int]]:
            found = model.generate_batch(prompts, generation_config=wanted, progress_bar=False)
            # Requests are numbered as they come, and answers are by number.
            made = [one.generated_tokens for one in sorted(found.values(), key=lambda one: _number(one.request_id))]
            assert [len(tokens) for tokens in made] == [self.tokens] * len(prompts)
            return made

        def answer() -> Answer:
            asked, made = prompts[:_JUDGED], run()[:_JUDGED]
            return judged(model, asked, made, [_logprobs(model, *row) for row in zip(asked, made, strict=True)])

        return Prepared(run, answer)


@torch.inference_mode()
def _logprobs(model: transformers.PreTrainedModel, prompt: list[int], made: list[int]) -> list[float]:
    """Of tokens that were made, by the model's own modules at once: generate_batch does not say them."""
    ids = torch.tensor([[*prompt, *made]], device=model.device)
    logits = model(ids, logits_to_keep=len(made) + 1).logits[0, :-1].float()
    found: list[float] = logits.log_softmax(-1).gather(-1, ids[0, -len(made) :, None])[:, 0].tolist()
    return found


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _served(engine: Engine, settings: ServeSettings) -> str:
    """The address of a server in a thread of this process."""
    import uvicorn

    from hayless.serve.app import Server, create_app

    service = Service(engine, Adapters(engine.model), settings)
    # Prompts are token ids; nothing asks the server for words.
    app = create_app(Server(service, "model", _Words()))  # type: ignore[arg-type]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


class _Words:
    """Stands for a tokenizer, which a model with random weights does not have."""

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)


def _clients(url: str, tokens: int) -> Callable[[Tokens], dict[str, Any]]:
    """Asks the server for all prompts at once, from another process."""
    command = [sys.executable, str(Path(__file__).with_name("clients.py")), url, "model", str(tokens)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    sending, coming = process.stdin, process.stdout

    def ask(prompts: Tokens) -> dict[str, Any]:
        sending.write(json.dumps([list(prompt) for prompt in prompts]) + "\n")
        sending.flush()
        line = coming.readline()
        if not line:
            raise RuntimeError(f"the clients ended ({process.wait()})")
        found: dict[str, Any] = json.loads(line)
        return found

    return ask
