"""Stands in for `python -m hayless`: leaves the folder that a run would leave, or fails in the way its recipe says.

The way is the recipe's `model.path`: works, refuses, crashes, killed, silent, sleeps, or the folder of another row.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hayless.recipe.folder import RunFolder, digest
from hayless.recipe.load import load
from tests.study import folders


def main() -> None:
    """Be `hayless run RECIPE --run-dir FOLDER [--peer NAME] [--fresh]`."""
    _, verb, source, option, target, *rest = sys.argv
    peer = rest[1] if rest[:1] == ["--peer"] else ""
    rest = rest[2:] if peer else rest
    assert verb == "run" and option == "--run-dir" and rest in ([], ["--fresh"])
    recipe, folder = load(source), Path(target)
    with (folder.parent / "starts.txt").open("a", encoding="utf-8") as file:
        file.write(f"{folder.name}{' fresh' if rest else ''}\n")
    if rest:
        shutil.rmtree(folder, ignore_errors=True)
    half_done = (folder / "half").exists()
    way = str(recipe.model.path)
    print(f"{way} begins", file=sys.stderr, flush=True)
    if way == "refuses":
        print("error: model.path = 'refuses' is not possible.\n  Give another.", file=sys.stderr)
        sys.exit(2)
    if way == "crashes":
        raise RuntimeError("<b>boom</b>")
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "silent":
        return
    if way == "sleeps" and not half_done:
        folder.mkdir(parents=True)
        run = RunFolder(folder)
        run.begin(recipe, fresh=False)
        run.set_status("running", recipe=digest(recipe, peer))
        (folder / "half").touch()
        (folder.parent / "sleeper.pid").write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(60)
    shutil.rmtree(folder, ignore_errors=True)
    folders.run(folder, recipe.name, bits=2.0 + 0.1 * recipe.seed, seed=recipe.seed)
    shutil.copy(source, folder / "recipe.yaml")
    status = {"state": "done", "recipe": digest(recipe, peer), "seconds": 1.0}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")


if __name__ == "__main__":
    main()
