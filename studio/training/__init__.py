"""The training engine: one readable loop that yields events."""
