"""Where base models come from (`sources`, no torch) and how one is loaded (`loading`)."""
