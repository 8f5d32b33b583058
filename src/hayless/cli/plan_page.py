"""`hayless plan --html`: the calculator as a file."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Any

from hayless.cli.output import emit, out


def write(file: str, model: str, preset: str, way: str, asked: dict[str, Any], json: bool) -> None:
    """Write the calculator to `file`, opened with a model or a preset, a way to train it, and what was `asked`.

    What is None there, and a model where none is given, is left to the page.
    """
    from hayless.model.source import fetch_config
    from hayless.plan import page
    from hayless.plan.memory import dims_from, methods_named
    from hayless.plan.ways import settings_of

    start = {field: value for field, value in asked.items() if value is not None}
    start["methods"] = [settings_of(config) for config in methods_named(way)]
    if model or preset:
        dims_from(model, preset)  # refuses what cannot be planned
        folder = Path(model).parent if Path(model).is_file() else model
        start |= {"preset": preset, "config": "" if preset else jsons.dumps(fetch_config(folder), indent=2)}
    page.write(Path(file), start)
    if json:
        emit({"page": file})
    else:
        out.print(f"The calculator is in {file}; open it in a browser.", markup=False)
