"""The runner: one pass over the scripts of the account that runs it."""
