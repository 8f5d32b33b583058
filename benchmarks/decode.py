"""Decoding against transformers.generate, on a GPU also against the limit of memory.

    python benchmarks/decode.py gpu|cpu [--out FOLDER] [--models FOLDER] [--stories FILE]

The limit is the bytes that a step must read, weights and cache, over the rate of a device copy. `--models` holds the
trained models `target` and `draft`, `--stories` is the checkpoint of TinyStories with 260,032 parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from stories import load_stories
from timing import Gate, copy_rate, device_time, engine_time, generate_time, llama_7b

from hayless.core.measurement import Goal
from hayless.decode.engine import Engine
from hayless.decode.program import Program, plan
from hayless.measure.speed import Spread
from hayless.study.bench.results import Row, write

if TYPE_CHECKING:
    from hayless.decode.graphs import Session

LIMIT, PEER = "limit of memory", "transformers.generate"
TOKENS = 64
SEED = 0


def gpu(models: Path) -> list[Row]:
    """Rows of the 7B shape and of the trained target on this GPU."""
    copied = copy_rate()
    rate = copied.median
    work = "device copy, read and written bytes counted"
    rows = [Row(work, "torch", "rate", "TB/s", copied.scaled(1e-12), better="higher")]
    model = llama_7b()
    program, engine = planned(model), Engine(model, backend="graphs")
    gate = Gate(engine)
    for count, context, share, ratio in ((1, 512, 0.85, 14.0), (32, 512, 0.70, None), (1, 8192, 0.70, None)):
        work = f"Llama-7B shape, random weights, bf16, batch {count}, context {context}"
        prompts = tokens_for(model, count, context)
        if let_through(gate, work, prompts, 16):
            rows += against_limit(work, engine, program, prompts, rate, share)
            if ratio is not None:
                rows += against_generate(work, model, prompts, rows[-1].spread, ratio, 24, 3)
    for count in (1, 2, 4, 8, 16):
        work = f"Llama-7B shape, random weights, bf16, batch {count}, 512 tokens in the cache"
        rows.append(Row(work, "hayless", "step on the device", "ms", step_time(session_of(program, count, 512))))
    del model, program, engine, gate
    torch.cuda.empty_cache()
    target = transformers.AutoModelForCausalLM.from_pretrained(models / "target", dtype=torch.bfloat16).cuda().eval()
    engine = Engine(target, backend="graphs")
    work = "trained target (16M), bf16, batch 1, 64 tokens of code before"
    prompts = [code_tokens(models / "target", 64)]
    if let_through(Gate(engine), work, prompts, 64):
        rows += against_limit(work, engine, planned(target), prompts, rate, None)
        rows += against_generate(work, target, prompts, rows[-1].spread, 50.0, 64, 5)
    return rows


def cpu(models: Path, stories: Path) -> list[Row]:
    """Rows of the small trained models on one thread of this CPU."""
    torch.set_num_threads(1)
    draft = transformers.AutoModelForCausalLM.from_pretrained(models / "draft", dtype=torch.float32).eval()
    rows = []
    for name, model, prompt in (
        ("TinyStories (260K)", load_stories(stories), [1]),
        ("trained draft (2.4M)", draft, code_tokens(models / "draft", 64)),
    ):
        work = f"{name}, fp32, batch 1, one thread"
        engine = Engine(model)
        if not let_through(Gate(engine), work, [prompt], 64):
            continue
        # In turn, so that whatever else the machine does falls on both.
        both = [
            (engine_time(engine, [prompt], 200, 1).median, generate_time(model, [prompt], 200, 1).median)
            for _ in range(9)
        ]
        ours, theirs = (Spread.of([pair[side] for pair in both]) for side in (0, 1))
        rows.append(Row(work, PEER, "time a token", "ms", theirs))
        rows.append(Row(work, "hayless", "time a token", "ms", ours, Goal(op=">=", against=PEER, ratio=2.5)))
    return rows


def let_through(gate: Gate, work: str, prompts: Sequence[list[int]], tokens: int) -> bool:
    """Whether the engine may be timed; a work that it does not do right gets no rows."""
    print(work, flush=True)
    passed = gate.passes(prompts, tokens)
    if not passed:
        print("  NOT TIMED: the engine computes something else", flush=True)
    return passed


def against_limit(
    work: str,
    engine: Engine,
    program: Program,
    prompts: Sequence[list[int]],
    rate: float,
    share: float | None,
) -> list[Row]:
    """The engine's time a token as its user sees it, beside the limit at the contexts that it went through."""
    held = len(prompts[0]) + TOKENS / 2
    least = (program.weight_bytes + len(prompts) * held * program.token_bytes) / rate * 1e3
    ours = engine_time(engine, prompts, TOKENS, 5)
    goal = Goal(op=">=", against=LIMIT, ratio=share) if share is not None else None
    print(f"  {ours.median:.4f} ms a token, {least / ours.median:.1%} of the limit", flush=True)
    return [
        Row(work, LIMIT, "time a token", "ms", Spread(least, least, least)),
        Row(work, "hayless", "time a token", "ms", ours, goal),
    ]


def against_generate(
    work: str,
    model: transformers.PreTrainedModel,
    prompts: Sequence[list[int]],
    ours: Spread,
    ratio: float,
    tokens: int,
    repeats: int,
) -> list[Row]:
    """The same time beside transformers' at its defaults."""
    theirs = generate_time(model, prompts, tokens, repeats)
    print(f"  transformers.generate {theirs.median:.3f} ms, {theirs.median / ours.median:.1f} times", flush=True)
    goal = Goal(op=">=", against=PEER, ratio=ratio)
    return [Row(work, PEER, "time a token", "ms", theirs), Row(work, "hayless", "time a token", "ms", ours, goal)]


@torch.inference_mode()
def session_of(program: Program, rows: int, length: int) -> Session:
    """A session with a captured greedy step, whose rows hold `length` random tokens."""
    from hayless.decode.graphs import Session  # needs Triton, which the CPU's rows do not

    session = Session(program, rows, length + 256)
    session.cache.k.normal_()
    session.cache.v.normal_()
    session.capture("greedy")
    session.lengths_b.fill_(length)
    return session


def step_time(session: Session) -> Spread:
    """Milliseconds of its step on the device."""
    return device_time(lambda: session.replay("greedy"))


def planned(model: transformers.PreTrainedModel) -> Program:
    """The model's program."""
    program = plan(model)
    assert isinstance(program, Program), program.reason
    return program


def tokens_for(model: transformers.PreTrainedModel, rows: int, context: int) -> list[list[int]]:
    """Random prompts so long that `context` is in the middle of what is timed."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(model.config.vocab_size, (rows, context - TOKENS // 2), generator=generator).tolist()


def code_tokens(folder: Path, count: int) -> list[int]:
    """The first tokens of a module of Python's standard library."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(Path(argparse.__file__).read_text(encoding="utf-8"))["input_ids"][:count]


def main() -> None:
    """Measure what is asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gpu", "cpu"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--stories", type=Path)
    chosen = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if chosen.what == "gpu":
        write(chosen.out / "decode.json", "decode", gpu(chosen.models))
        return
    if chosen.stories is None:
        parser.error("cpu needs --stories")
    write(chosen.out / "decode_trained_cpu.json", "decode_trained_cpu", cpu(chosen.models, chosen.stories))


if __name__ == "__main__":
    main()
