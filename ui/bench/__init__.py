"""The benchmark command: this studio and its peers on the same rows, in one run."""
