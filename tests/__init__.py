"""The tests; `tests.tiny` makes the checkpoints and texts that they run on."""
