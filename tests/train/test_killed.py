"""With every optimizer: a run that is killed in a backward pass ends with the bits of one that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hayless.core.method import Part
from hayless.core.registry import methods
from tests.train import source
from tests.train.killed import KILLED, STEPS, trainer
from tests.train.test_resume import ROOT, figures, final

OPTIMIZERS = [card.name for card in methods([Part.OPTIMIZER])]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder a optimizer, of a run that was killed in a backward pass."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.killed", str(folder), *OPTIMIZERS]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=240)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_killed_in_a_backward_pass_ends_with_the_same_bits(tmp_path, killed, name):
    assert source.lines(killed / name, "train")[-1]["step"] == KILLED - 1
    trainer(tmp_path, name).run()
    trainer(killed / name, name).run()
    assert source.same(final(tmp_path, STEPS), final(killed / name, STEPS))
    assert figures(tmp_path) == figures(killed / name)
