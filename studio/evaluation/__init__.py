"""Evaluation: metrics, prompt suites, rankings from votes, bake-offs, promotion."""
