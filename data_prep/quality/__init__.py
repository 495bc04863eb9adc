"""A linear classifier of text by hashed n-grams: its features, its training, its file, its agreement with labels."""
