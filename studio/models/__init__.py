"""Base models: where they come from, what their files contain, and loading them."""
