"""Which ds_config is the fastest that fits."""
