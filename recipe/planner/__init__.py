"""What a run will need before it is launched: memory, communication, time, money. No torch, no cluster."""
