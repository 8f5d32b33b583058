"""What the benchmarks of decoding share: models, clocks of the device, transformers' own generation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
import transformers

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.measure.speed import Spread

_ROUNDING = 1e-3


def llama_7b() -> transformers.PreTrainedModel:
    """Llama-7B's shape with random weights in bf16, made on the GPU, with room for 16k tokens."""
    config = transformers.LlamaConfig(vocab_size=32000, max_position_embeddings=16384)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def device_time(run: Callable[[], object], repeats: int = 30, warmup: int = 5) -> Spread:
    """Milliseconds of `run` by device events."""
    for _ in range(warmup):
        run()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return Spread.of([start.elapsed_time(end) for start, end in pairs])


def copy_rate() -> Spread:
    """Bytes a second of a large device copy, read and written both counted."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    return device_time(lambda: target.copy_(source), 20).rate(2e3 * source.nbytes)


def engine_time(engine: Engine, prompts: Sequence[list[int]], tokens: int, repeats: int) -> Spread:
    """Milliseconds a token after the first of the engine, greedy, as its caller sees them; one figure a repeat."""
    options = SamplingOptions(max_tokens=tokens + 1, ignore_end=True)

    def run() -> float:
        seconds = engine.generate(prompts, options, batch_size=len(prompts))[0].seconds_per_token
        assert seconds is not None
        return seconds * 1e3

    run()
    return Spread.of([run() for _ in range(repeats)])


def generate_time(
    model: transformers.PreTrainedModel, prompts: Sequence[list[int]], tokens: int, repeats: int
) -> Spread:
    """Milliseconds a token after the first of `transformers.generate` at its defaults, greedy; prompts are as long."""
    ids = torch.tensor(prompts, device=model.device)
    mask = torch.ones_like(ids)
    ends = model.generation_config.eos_token_id

    def run(count: int) -> float:
        start = time.perf_counter()
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=0).tolist()
        return time.perf_counter() - start

    # Without an end token, as the engine ignores it; min_new_tokens would forbid it, which is other work.
    model.generation_config.eos_token_id = None
    try:
        run(4)
        return Spread.of([(run(tokens + 1) - run(1)) / tokens * 1e3 for _ in range(repeats)])
    finally:
        model.generation_config.eos_token_id = ends


class Gate:
    """Refuses to time an engine that computes something else than the model.

    The judge is the model in float32. A 16-bit engine may be as far from it as transformers' own modules are in 16
    bits (twice, for chance); a float32 engine may be as far as `_ROUNDING`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        exact = engine.model.dtype is torch.float32
        self._exact = engine.model if exact else copy.deepcopy(engine.model).float()

    @torch.inference_mode()
    def passes(self, prompts: Sequence[list[int]], tokens: int) -> bool:
        """Whether the engine's greedy tokens are the likeliest, and its log-probabilities right; says by how much.

        All prompts are decoded side by side; at most eight are judged.
        """
        options = SamplingOptions(max_tokens=tokens, ignore_end=True)
        found = self._engine.generate(prompts, options, batch_size=len(prompts))
        ours, theirs, short = [], [], []
        for prompt, one in list(zip(prompts, found, strict=True))[:: max(1, len(prompts) // 8)]:
            ids = torch.tensor([[*prompt, *one.tokens]], device=self._exact.device)
            chosen = torch.tensor(one.tokens)[:, None]
            judge, modules = (
                model(ids, logits_to_keep=tokens + 1).logits[0, :-1].float().log_softmax(-1).cpu()
                for model in (self._exact, self._engine.model)
            )
            right = judge.gather(-1, chosen)
            ours.append(torch.tensor(one.logprobs)[:, None] - right)
            theirs.append(modules.gather(-1, chosen) - right)
            short.append(judge.amax(-1, keepdim=True) - right)
        error, allowed = (torch.cat(each).square().mean().sqrt().item() for each in (ours, theirs))
        worst = torch.cat(short).max().item()
        print(
            f"  nats from float32: engine {error:.2g}, modules {allowed:.2g}; chosen token short by {worst:.2g}",
            flush=True,
        )
        return error <= 2 * allowed + _ROUNDING and worst <= 6 * allowed + _ROUNDING
