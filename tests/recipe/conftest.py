"""One trained run and its export, for the tests of what is done with a finished model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import RunFiles, ds_config, launch, write_run

DS = {"micro_batch": 4, "accumulation": 1, "autoep_size": 2}


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> RunFiles:
    """Limited in training, dropless in evaluation and export; evaluated once it is trained."""
    folder = tmp_path_factory.mktemp("trained")
    routing = {"capacity": {"mode": "drop", "factor": 0.5}}
    data = {"tokens": str(prepared.tokens), "seq_length": 32, "document_attention": True}
    run, ds = write_run(folder, "trained", prepared, data=data, routing=routing), folder / "ds.json"
    ds.write_text(json.dumps(ds_config(2, **DS)))
    for script, words in (
        ("recipe/train.py", run.arguments(ds)),
        ("recipe/evaluate_model.py", ["held-out", "--run", run.run_dir]),
    ):
        done = launch(2, script, *words)
        assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def exported(trained) -> Path:
    output = trained.run_dir.parent / "export"
    done = launch(2, "recipe/export.py", "--run", trained.run_dir, "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]
    return output
