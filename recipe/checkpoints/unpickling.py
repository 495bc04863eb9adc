"""Reading DeepSpeed's pickled states without running what a stranger put into them.

DeepSpeed 0.19.8 reads checkpoints with `weights_only=False`, which runs any code that a pickle names; a manifest's
checksums do not help, since who can write the files can write the manifest. Inside `only_known_classes` torch reads
tensors and plain values, and of classes only those that DeepSpeed's states need.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recipe.base.errors import UserError
from recipe.base.ranks import environment
from recipe.engine.deepspeed_private import STATE_CLASSES

# Read by torch.load in place of what its caller asks for.
_FORCED = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}


@contextmanager
def only_known_classes(checkpoint: Path) -> Iterator[None]:
    """Have every `torch.load` of this process and of those that it forks refuse classes that are not known.

    Raises:
        UserError: a file of `checkpoint` holds another one; names it.
    """
    try:
        with environment(_FORCED), torch.serialization.safe_globals(list(STATE_CLASSES)):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {named[1]}, which no state of DeepSpeed needs" if named else "is no state of DeepSpeed"
        raise UserError(
            f"a file of {checkpoint} {what}, and is not loaded: it could run any code; use a checkpoint that you trust"
        ) from None
