"""The phases of a run in its folder: their data, their ds_configs, and both as they were recorded."""
