"""What is known of model families by name. Torch-free: the estimate counts with it."""

SKIPPING = ("llama", "mistral", "qwen2", "qwen3")
"""Families (`model_type`) whose last layer may run its feed-forward only where it is read: it is
two norms, attention and a feed-forward, added in the plain order. `methods/layer/lean.py` does it,
`training/estimate.py` counts it."""
