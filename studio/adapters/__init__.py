"""Adapters on disk; `library` lists and finds them without torch."""
