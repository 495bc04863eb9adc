"""What a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe.base.errors import UserError
from recipe.base.settings import RunConfig
from recipe.run.run_folder import check_run_folder, record_start


def config(run_dir: Path, *, total_tokens: int = 1000, mixture: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "model": "model",
            "tokenizer": "tokenizer",
            "data": {"tokens": "tokens", "seq_length": 8, "mixture": mixture or {}},
            "schedule": {"total_tokens": total_tokens, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 0},
            "checkpoint": {"every_steps": 10},
            **more,
        }
    )


def test_a_new_folder_takes_any_run_and_an_old_one_none_without_resume(tmp_path):
    assert check_run_folder(config(tmp_path / "run"), resumes=False) == []
    record_start(config(tmp_path / "run"), {})
    with pytest.raises(UserError, match="already holds a run; add --resume auto"):
        check_run_folder(config(tmp_path / "run"), resumes=False)


def test_what_may_change_is_told_and_what_may_not_is_refused(tmp_path):
    record_start(config(tmp_path), {})
    assert check_run_folder(config(tmp_path, total_tokens=2000), resumes=True) == ["schedule"]
    assert check_run_folder(config(tmp_path, compute={"recompute": "reentrant"}), resumes=True) == ["compute"]
    with pytest.raises(UserError, match="other settings in seed; restore them"):
        check_run_folder(config(tmp_path, seed=1), resumes=True)


@pytest.mark.parametrize("mixture", [{"max_epochs": 2.0}, {"anneal": {"share": 0.1, "tier_weights": {1: 2.0}}}])
def test_a_longer_schedule_is_refused_where_the_data_depend_on_it(mixture, tmp_path):
    record_start(config(tmp_path, mixture=mixture), {})
    assert check_run_folder(config(tmp_path, mixture=mixture), resumes=True) == []
    with pytest.raises(UserError, match="changes from 1,000 to 2,000, and with it which data come next"):
        check_run_folder(config(tmp_path, mixture=mixture, total_tokens=2000), resumes=True)
