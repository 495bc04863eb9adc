"""The oldest transformers that people serve with reads an export as the model that was trained, or the check says that it does not.

The other clients are too heavy for every change: `make clients` asks them all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.clients.check import CLIENTS, damage, new_case, result

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("exported")]

# Over the environment of these tests, whose torch it uses; what it needs of an older version comes with it.
PINS = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2")


def test_transformers_4_reads_an_export_as_the_model_that_was_trained(exported, tmp_path):
    (client,) = (
        replace(c, environment=None, overlay=PINS, bound=1e-5) for c in CLIENTS if c.name == "transformers 4.57"
    )
    case = new_case(exported, tmp_path / "case")
    row = result(client, case, tmp_path)
    assert (row["version"], row["verdict"]) == ("4.57.6", "right"), row["result"]

    # The layout in memory of transformers 5, which 4.57 loads with randomly initialised experts. Log-probabilities tell: no text.
    case.request["prompts"] = []
    case.request["model"] = str(damage(exported, tmp_path / "fused", "fused"))
    row = result(client, case, tmp_path)
    assert (row["verdict"], "log-probabilities differ" in row["result"]) == ("wrong", True), row
