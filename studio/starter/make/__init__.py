"""Make the starter model and its demo datasets from a seed; not installed with the wheel."""
