"""Builds the CPU kernels: plain C without Python. Without a C compiler Cuvée installs all the same, and merges slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "cuvee.tensors._kernels",
            sources=["cuvee/tensors/_kernels.c", "cuvee/tensors/_digests.c"],
            # Floating point as it is written: multiply and add are never fused, sums never reordered.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
            optional=True,
        )
    ]
)
