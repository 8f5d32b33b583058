"""The model's thread: takes requests from the server's event loop, runs them side by side, hands their tokens back.

Everything that touches the model happens in one thread. Requests are begun in the order in which they came. Adapters of
a bank run side by side; one that must be on the model by itself waits until the batch is empty, and those behind it
wait with it, so that nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from hayless.core.errors import HaylessError, WorkError
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.request import Piece, Request
from hayless.decode.running import Running, check_length
from hayless.serve.adapters import Adapters
from hayless.serve.errors import Busy, Stopping
from hayless.serve.settings import ServeSettings

Event = Piece | HaylessError
"""What a stream brings: a token, or what ended it instead."""


@dataclass(eq=False, slots=True)
class Stream:
    """One continuation on its way to a client; `events` ends with a piece that has a `finish`, or with an error.

    `worn` is the adapter that must be on the model for it, "" for none.
    """

    request: Request
    worn: str
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


Parcel = Sequence[tuple[Stream, Event]]
"""What one event loop gets at once."""


class Service:
    """Runs an engine for many clients. `start` it, `submit` from an event loop, `stop` it.

    `adapters` are those of the engine's bank, and others that are switched between batches; the name "" is the model
    without any.
    """

    def __init__(self, engine: Engine, adapters: Adapters, settings: ServeSettings) -> None:
        assert engine.adapters is adapters.bank
        self.engine, self.adapters, self.settings = engine, adapters, settings
        self._opened: Running | None = engine.open(settings.rows, settings.tokens)
        self.tokens = self._opened.tokens
        self.generated = 0
        self._waiting: deque[Stream] = deque()
        self._streams: dict[Request, Stream] = {}
        self._cancelled: list[Stream] = []
        self._jobs: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._failed: HaylessError | None = None
        self._thread = threading.Thread(target=self._run, name="hayless-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Take nothing more, finish what runs within `grace` seconds, end the rest."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(grace)
        with self._wake:
            self._cancelled += [*self._streams.values(), *self._waiting]
            self._wake.notify()
        self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return len(self._streams), len(self._waiting)

    @property
    def failed(self) -> HaylessError | None:
        """What ended the model's thread, if something did."""
        return self._failed

    def submit(self, prompts: Sequence[list[int]], options: Sequence[SamplingOptions], adapter: str) -> list[Stream]:
        """Streams of continuations, from within an event loop.

        RequestError for a prompt that does not fit, Busy where too many wait, Stopping at the end.
        """
        loop = asyncio.get_running_loop()
        worn = self.adapters.worn(adapter)
        beside = "" if worn else adapter
        requests = [self.engine.request(ids, one, beside) for ids, one in zip(prompts, options, strict=True)]
        for request in requests:
            check_length(request, self.tokens)
        streams = [Stream(request, worn, loop) for request in requests]
        with self._wake:
            self._check_open()
            # Free rows are no places to wait in, but what waits for one of them is no crowd either.
            free = max(0, self.settings.rows - len(self._streams))
            if len(self._waiting) + len(streams) > self.settings.queue + free:
                raise Busy(
                    f"No row is free and {len(self._waiting)} requests wait; {self.settings.queue} may.",
                    hint="Try again in a while.",
                )
            self._waiting += streams
            self._wake.notify()
        return streams

    def between_tokens(self, job: Callable[[], None]) -> Future[None]:
        """Have the model's thread do something as soon as no step runs. Stopping at the end."""
        done: Future[None] = Future()
        with self._wake:
            self._check_open()
            self._jobs.append((job, done))
            self._wake.notify()
        return done

    def cancel(self, streams: Sequence[Stream]) -> None:
        """Nobody wants these any more."""
        with self._wake:
            self._cancelled += streams
            self._wake.notify()

    def _check_open(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._stopping:
            raise Stopping("The server is being stopped.")

    def _run(self) -> None:
        running = self._opened
        self._opened = None
        assert running is not None
        try:
            while self._wait_for_work(running):
                try:
                    running = self._turn(running)
                except Exception as error:
                    # Out of memory, or a defect: those who run hear of it, the others go on in a new batch.
                    traceback.print_exc()
                    self._end(error, list(self._streams.values()))
                    running = self.engine.open(self.settings.rows, self.settings.tokens)
        except Exception as error:
            self._failed = WorkError(f"The model stopped: {error}.")
            traceback.print_exc()
            with self._wake:
                left = [*self._streams.values(), *self._waiting]
                self._waiting.clear()
            self._end(self._failed, left)
            for _, done in self._jobs:
                if done.set_running_or_notify_cancel():
                    done.set_exception(self._failed)

    def _wait_for_work(self, running: Running) -> bool:
        """Sleep until there is work; False when there is none and will be none."""
        with self._wake:
            while not (running.busy or self._waiting or self._cancelled or self._jobs or self._stopping):
                self._wake.wait()
            return bool(running.busy or self._waiting or self._cancelled or self._jobs)

    def _turn(self, running: Running) -> Running:
        """Let requests leave and in, and make a token of each; the batch that now runs."""
        with self._wake:
            self._drop_cancelled(running)
            due = self._due(running)
            jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        for job, done in jobs:
            _settle(job, done)
        if due and due[0].worn != self.adapters.active:
            self.adapters.switch(due[0].worn)
            # Branches change how the model can be run.
            running = self.engine.open(self.settings.rows, self.settings.tokens)
        for stream in due:
            running.add(stream.request)
        self._hand_out(running.step())
        return running

    def _due(self, running: Running) -> list[Stream]:
        """Who takes a free row now: those that came first, as far as they want what is on the model."""
        due: list[Stream] = []
        worn = self.adapters.active if running.busy else None
        while self._waiting and len(self._streams) < self.settings.rows:
            worn = self._waiting[0].worn if worn is None else worn
            if self._waiting[0].worn != worn:
                break
            stream = self._waiting.popleft()
            self._streams[stream.request] = stream
            due.append(stream)
        return due

    def _drop_cancelled(self, running: Running) -> None:
        for stream in self._cancelled:
            if stream in self._waiting:
                self._waiting.remove(stream)
            running.cancel(stream.request)
            self._streams.pop(stream.request, None)
            _send(stream.loop, [(stream, Stopping("The request was cancelled."))])
        self._cancelled.clear()

    def _hand_out(self, made: Sequence[tuple[Request, Piece | WorkError]]) -> None:
        """Bring tokens to their event loops, with one call for each loop."""
        parcels: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Event]]] = {}
        for request, event in made:
            stream = self._streams.get(request)
            if stream is None:
                continue
            self.generated += 1
            if isinstance(event, HaylessError) or event.finish:
                del self._streams[request]
            parcels.setdefault(stream.loop, []).append((stream, event))
        for loop, parcel in parcels.items():
            _send(loop, parcel)

    def _end(self, error: Exception, streams: Sequence[Stream]) -> None:
        """Tell streams that they ended with an error."""
        known = error if isinstance(error, HaylessError) else WorkError(f"The model's step failed: {error}.")
        for stream in streams:
            stream.request.finish = stream.request.finish or "cancelled"
            self._streams.pop(stream.request, None)
            _send(stream.loop, [(stream, known)])


def _settle(job: Callable[[], None], done: Future[None]) -> None:
    """Do a job that somebody still waits for, and say that it is done, or why not."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        job()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _send(loop: asyncio.AbstractEventLoop, parcel: Parcel) -> None:
    """Let an event loop put a parcel into its streams' queues."""
    with suppress(RuntimeError):  # the loop is closed, and with it every connection
        loop.call_soon_threadsafe(_deliver, parcel)


def _deliver(parcel: Parcel) -> None:
    for stream, event in parcel:
        stream.events.put_nowait(event)
