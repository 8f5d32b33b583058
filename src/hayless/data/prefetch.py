"""Making batches in a thread while the model computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from hayless.data.batches import Batch, Batches


def prefetched(
    batches: Batches, start: int, stop: int, *, depth: int = 2, pin: bool = False
) -> Generator[tuple[int, list[Batch]], None, None]:
    """(step, its micro-batches) for steps `start` to `stop` − 1, made up to `depth` steps ahead in one thread.

    `pin` puts them into page-locked memory. An error in the thread is raised here. The thread ends when the iterator
    is closed or runs out.
    """
    ready: queue.Queue[tuple[int, list[Batch]] | BaseException | None] = queue.Queue(maxsize=max(1, depth))
    closed = threading.Event()

    def put(item: tuple[int, list[Batch]] | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for step in range(start, stop):
                made = batches.step(step)
                if not put((step, [batch.pin_memory() for batch in made] if pin else made)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="hayless-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
