"""What watches a run and acts: watchdog, stragglers, corruption, failures, mitigations."""
