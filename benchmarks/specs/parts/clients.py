"""Clients of a server, in a process of their own: `python clients.py URL MODEL TOKENS`.

Each line on standard input is a JSON list of prompts (lists of token ids), which are asked for at once, streamed; the
answer is a line with the seconds that all took and, for each client, when each of its tokens came, in seconds from the
start. Plain sockets, so that reading what comes costs little.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def ask(url: str, model: str, prompt: list[int], tokens: int, start: float) -> list[float]:
    """When each token of one answer came."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    wanted = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body = json.dumps({**wanted, "ignore_end": True, "logprobs": 0}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    times = []
    async for line in reader:
        if line.startswith(b'data: {"id"'):
            times.append(time.perf_counter() - start)
    writer.close()
    assert len(times) == tokens, f"{len(times)} tokens came instead of {tokens}"
    return times


async def round_of(url: str, model: str, tokens: int, prompts: list[list[int]]) -> dict[str, object]:
    """All prompts at once."""
    start = time.perf_counter()
    times = await asyncio.gather(*(ask(url, model, prompt, tokens, start) for prompt in prompts))
    return {"seconds": time.perf_counter() - start, "times": times}


def main() -> None:
    """Answer lines until there are no more."""
    url, model, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for line in sys.stdin:
        print(json.dumps(asyncio.run(round_of(url, model, tokens, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
