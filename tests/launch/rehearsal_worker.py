"""launch/rehearse.py in a process that has its imports done, without the environment and the argument of a launcher."""

from __future__ import annotations

import os
import sys

from launch import rehearse

# `tests/rank_server.py` sets them for a rank; a rehearsal is started by hand.
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT")

if __name__ == "__main__":
    for name in OF_A_RANK:
        os.environ.pop(name, None)
    sys.exit(rehearse.main([word for word in sys.argv[1:] if not word.startswith("--local_rank")]))
