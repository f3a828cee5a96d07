"""The method contract kit: one line gives a merge method every law we know.

from cuvee.testing import check_method

def test_my_method():
    check_method("my_method", density=0.5)
"""

from cuvee.testing.contract import LAWS, BrokenContract, Contract, check_method

__all__ = ["LAWS", "BrokenContract", "Contract", "check_method"]
