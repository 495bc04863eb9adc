"""Shares of a mixture by proxy runs: held-out loss as a function of the shares, and the mixture that it proposes."""
