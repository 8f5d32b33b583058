"""What was drafted, what was kept, and how long it took. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

_LAST = 128


@dataclass(slots=True)
class Tally:
    """Counts over all rows, and the seconds that drafting a token took in each of the last passes."""

    passes: int = 0
    drafted: int = 0
    tested: int = 0
    kept: int = 0
    drafting: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, drafted: int, kept: Sequence[int]) -> None:
        """Count a pass of each row. Drafted tokens behind the first that is rejected are not tested."""
        self.passes += len(kept)
        self.drafted += drafted * len(kept)
        self.tested += sum(min(count + 1, drafted) for count in kept)
        self.kept += sum(kept)

    def join(self, other: Tally) -> None:
        """Take another's counts in."""
        self.passes += other.passes
        self.drafted += other.drafted
        self.tested += other.tested
        self.kept += other.kept
        self.drafting.extend(other.drafting)

    @property
    def acceptance(self) -> float | None:
        """Share of tested tokens that were kept; None where none was tested."""
        return self.kept / self.tested if self.tested else None

    @property
    def tokens_a_pass(self) -> float | None:
        """Tokens that a pass gave a row; None where there was no pass."""
        return 1 + self.kept / self.passes if self.passes else None
