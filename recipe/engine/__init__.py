"""DeepSpeed: the engine, one optimizer step, AutoEP and the routers."""
