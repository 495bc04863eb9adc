"""Small grammars, one for each language of the embedded corpus."""
