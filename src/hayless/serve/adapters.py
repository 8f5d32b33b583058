"""A model's adapters by name: folders as PEFT writes them, all on the same base, one active at a time.

Their tensors stay on the host; switching takes one adapter's branches off the model and puts another's on.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.model import adapters


class Adapters:
    """The adapters in the folders of `root`, each called as its folder; none if `root` is None.

    `base` is the folder of the model, whose fingerprint those that noted one must have. All are read and tried on the
    model at once, so that a wrong one is found before anybody asks for it.
    """

    def __init__(self, model: PreTrainedModel, base: Path | None = None, root: Path | None = None) -> None:
        self.active = ""
        self._model = model
        self._read: dict[str, adapters.Adapter] = {}
        if root is None:
            return
        folders = sorted(folder for folder in root.glob("*") if (folder / adapters.CONFIG).is_file())
        if not folders:
            raise RequestError(f"{root} has no folder with an {adapters.CONFIG}.", hint="Give a folder of adapters.")
        for folder in folders:
            if base is not None:
                adapters.check_base(folder, base)
            self._read[folder.name] = adapters.read(folder)
            self.switch(folder.name)
        self.switch("")

    @property
    def names(self) -> list[str]:
        """What the adapters are called."""
        return list(self._read)

    def switch(self, name: str) -> None:
        """Put this adapter on the model, or none if the name is empty."""
        if name == self.active:
            return
        if self.active:
            self._read[self.active].take_off(self._model)
            self.active = ""
        if name:
            self._read[name].put_on(self._model)
            self.active = name
