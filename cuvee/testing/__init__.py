"""The method contract kit: one line gives a merge method every law we know.

from cuvee.testing import check_method

def test_my_method():
    check_method("my_method", density=0.5)
"""

from cuvee.testing import matrix_laws as _matrix_laws  # registers its laws
from cuvee.testing.contract import LAWS, BrokenContract, Contract, check_method

del _matrix_laws

__all__ = ["LAWS", "BrokenContract", "Contract", "check_method"]
