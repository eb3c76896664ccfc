"""veRL without a GPU."""
