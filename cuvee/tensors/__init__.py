"""Arithmetic on blocks: dtypes, layout, order, draws, digests, kernels."""
