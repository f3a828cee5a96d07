"""Builds the CPU kernels: plain C without Python. Without a C compiler Cuvée installs all the same, and merges slower."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = ["cuvee/tensors/_kernels.c", "cuvee/tensors/_digests.c"]
DECLARED = "cuvee/tensors/c_library.py"

checksum = 0  # built in: a library of other sources than those beside c_library.py is not used
for source in (*SOURCES, DECLARED):
    checksum = zlib.crc32(Path(__file__).parent.joinpath(source).read_bytes(), checksum)

setup(
    ext_modules=[
        Extension(
            "cuvee.tensors._kernels",
            sources=SOURCES,
            depends=[DECLARED],
            define_macros=[("CUVEE_SOURCES", f"{checksum}u")],
            # Floating point as it is written: multiply and add are never fused, sums never reordered.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
            optional=True,
        )
    ]
)
