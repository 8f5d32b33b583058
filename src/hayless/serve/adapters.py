"""A model's adapters by name: folders as PEFT writes them, all on the same base.

Those that are low-rank sums lie side by side in a bank, and each request of a batch can have another; they come and go
while others run. Others (DoRA, prefixes, IA3 and so on) stay on the host and are put on the model one at a time.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from hayless.core.errors import NotSupported, RequestError, unknown
from hayless.decode.bank import AdapterBank
from hayless.model import adapters
from hayless.model.adapters import Adapter

LEAST_SLOTS = 8
"""Adapters for which there is room where nobody says for how many."""


class Adapters:
    """The adapters in the folders of `root`, each called as its folder; none if `root` is None.

    `base` is the folder of the model, whose fingerprint those that noted one must have. All are read and tried on the
    model at once, so that a wrong one is found before anybody asks for it. `slots` and `rank` are those of the bank
    (see `AdapterBank.for_adapters`); with `mixed` False there is none, and one adapter at a time is on the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base: Path | None = None,
        root: Path | None = None,
        *,
        slots: int | None = None,
        rank: int | None = None,
        mixed: bool = True,
    ) -> None:
        self.active = ""
        self.bank: AdapterBank | None = None
        self._model, self._base, self._root = model, base, root
        self._worn: dict[str, Adapter] = {}
        if root is None:
            return
        names = self._folders()
        if not names and (rank is None or not mixed):
            raise RequestError(
                f"{root} has no folder with an {adapters.CONFIG}.",
                hint="Give a folder of adapters, or a rank (--adapter-rank) of those that are to be added later.",
            )
        found = {name: self.read(name) for name in names}
        beside = {name: one for name, one in found.items() if mixed and self._is_low_rank(one)}
        self._worn = {name: one for name, one in found.items() if name not in beside}
        for name in self._worn:
            self.switch(name)
        self.switch("")
        if beside or (mixed and rank is not None):
            room = max(LEAST_SLOTS, len(beside)) if slots is None else slots
            self.bank = AdapterBank.for_adapters(model, beside.values(), room, rank=rank)
            for name, one in beside.items():
                self.bank.add(name, one)

    @property
    def names(self) -> list[str]:
        """What the adapters are called."""
        return sorted([*(self.bank.names if self.bank else ()), *self._worn])

    def worn(self, name: str) -> str:
        """The adapter that must be on the model for one of this name; "" for those of the bank, and for none."""
        return name if name in self._worn else ""

    def read(self, name: str) -> Adapter:
        """The adapter in a folder of the root. RequestError where there is none, and for another base."""
        if self._root is None:
            raise RequestError("No folder of adapters is served.", hint="Start the server with --adapters.")
        # A name, never a path: what lies elsewhere is nobody's to ask for.
        if name not in (there := self._folders()):
            raise unknown("folder of an adapter", name, there)
        found = adapters.read(self._root / name)
        if self._base is not None:
            adapters.check_base(self._root / name, self._base)
        return found

    def add(self, name: str, adapter: Adapter) -> None:
        """Put an adapter beside those that are served. NotSupported for one that cannot be mixed with others."""
        if name in self.names:
            raise RequestError(f"An adapter {name} is already served.", hint="Remove it first.")
        if self.bank is None:
            raise NotSupported(
                "This server has no room for adapters side by side.",
                hint="Start it with --adapters and --adapter-rank, without drafts.",
            )
        self.bank.add(name, adapter)

    def remove(self, name: str) -> None:
        """Serve an adapter no more. RequestError for an unknown one, InUse while requests have it."""
        if name in self._worn:
            raise NotSupported(f"The adapter {name} cannot be mixed with others, and is served to the end.")
        if name not in self.names:
            raise unknown("adapter", name, self.names)
        assert self.bank is not None
        self.bank.remove(name)

    def switch(self, name: str) -> None:
        """Put an adapter that cannot be mixed on the model, or none if the name is empty."""
        if name == self.active:
            return
        if self.active:
            self._worn[self.active].take_off(self._model)
            self.active = ""
        if name:
            self._worn[name].put_on(self._model)
            self.active = name

    def _folders(self) -> list[str]:
        assert self._root is not None
        return sorted(folder.name for folder in self._root.glob("*") if (folder / adapters.CONFIG).is_file())

    def _is_low_rank(self, adapter: Adapter) -> bool:
        try:
            adapter.low_rank(self._model)
        except NotSupported:
            return False
        return True
