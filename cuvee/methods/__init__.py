"""Merge methods: the registry, measuring, pieces and papers."""
