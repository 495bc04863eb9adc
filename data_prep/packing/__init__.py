"""Documents of a token folder in an order that keeps them whole in sequences of one length: data_prep/pack_sequences.py."""
