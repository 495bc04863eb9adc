"""What a run has written, read and drawn for people: recipe/report.py and recipe/watch.py. No torch."""
