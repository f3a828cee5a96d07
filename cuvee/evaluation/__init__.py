"""Evaluation: the demo, which trains a base and experts on real text, merges them, and scores all on held-out text."""
