"""What finished data jobs did, read from their manifests and drawn for people: data_prep/report.py."""
