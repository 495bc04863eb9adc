"""How long tests wait for what must happen. No test measures time: this only ends one that hangs, on a busy machine too."""

PATIENCE_S = 900.0
