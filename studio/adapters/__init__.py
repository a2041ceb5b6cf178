"""Adapters on disk: the library, and merge, mix, export, import; `library` loads no torch."""
