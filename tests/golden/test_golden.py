"""Golden cases of reference implementations: ours in `cases/`, and all of `../shared/golden` where it exists.

`pending.txt` lists what does not pass yet. A listed case that passes fails the build, as does an unlisted one that does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_cases import SELECTION, SHARED, GoldenCase, cases_in, deviations, pending

from cuvee.errors import CuveeError

FIRST = {
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties"),
    *("della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "arcee_fusion"),
    *("ram", "ramplus_tl", "passthrough", "magmax", "consensus_ta", "consensus_ties", "negmerge", "pcb_merging"),
    *("cabs", "widen"),
}
"""Methods that a clone alone must test."""
FILES = {"mergekit_yaml", "mergekit_moe", "mergekit_slices", "tokenizer_merge", "tokensurgeon", "peft_load"}
"""Cases about files rather than a method."""


def check(case: GoldenCase, folder: Path) -> None:
    assert case.runner is not None, f"{case.description['method']} is not built: list it in pending.txt"
    got = case.runner(case, folder)
    wrong = deviations(got, case.expected(), case.description["tolerance"])
    assert not wrong, "; ".join(wrong)


def check_with_list(case: GoldenCase, folder: Path) -> None:
    listed = pending()
    if f"{case.folder.parent.name}/*" in listed:
        assert case.runner is None, f"{case.folder.parent.name}/* is listed in pending.txt, but the method is built"
        return
    if case.name not in listed:
        check(case, folder)
        return
    with pytest.raises((AssertionError, CuveeError)):
        check(case, folder)
        pytest.fail(f"{case.name} passes: remove it from pending.txt", pytrace=False)


@pytest.mark.parametrize("case", cases_in(SELECTION), ids=lambda case: case.name)
def test_a_case_of_the_selection_comes_out_as_in_the_reference(case, tmp_path):
    check_with_list(case, tmp_path)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"{SHARED} is not there: only the selection in the repository was tested"
)
@pytest.mark.parametrize("case", cases_in(SHARED) or [None], ids=lambda case: case.name if case else "none")
def test_a_shared_case_comes_out_as_in_the_reference(case, tmp_path):
    check_with_list(case, tmp_path)


def test_the_selection_has_a_case_of_every_method_and_is_small():
    assert {case.folder.parent.name for case in cases_in(SELECTION)} >= FIRST | FILES
    assert sum(path.stat().st_size for path in SELECTION.rglob("*") if path.is_file()) <= 5_000_000


def test_pending_names_each_case_once_and_only_real_ones():
    listed = pending()
    assert len(set(listed)) == len(listed)
    assert listed == sorted(listed)
    if SHARED.is_dir():
        real = {case.name for root in (SELECTION, SHARED) for case in cases_in(root)}
        real |= {f"{name.split('/')[0]}/*" for name in real}
        assert set(listed) <= real
