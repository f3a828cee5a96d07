"""Orthogonal matching pursuit: each target as a combination of few atoms, chosen one by one, refitted after each.

Source: Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit, arXiv 2506.06607.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["orthogonal_pursuit"]

_DEPENDENT = 1e-6  # of an atom's length: what is left of it outside the span of those chosen before


def orthogonal_pursuit(targets_BD: Tensor, atoms_SD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose for each target the k atoms that explain it, and fit their coefficients by least squares.

    At each step the atom with the largest |⟨r, atom⟩| is taken (atoms are not normalised), and the residual r made
    orthogonal to all taken so far, by a QR decomposition that grows by one column.

    Args:
        targets_BD: (B, D), float32, on any device; the results are there too.
        atoms_SD: (S, D), float32; S ≥ 1.
        k: at most S are taken.

    Returns:
        indices (B, k) int64 and coefficients (B, k) float32. An atom that depends on those before it has the
        coefficient 0, as have all atoms after a target is explained in full.
    """
    count, k = len(targets_BD), min(k, len(atoms_SD))
    device = targets_BD.device
    at = torch.arange(count, device=device)
    residual_BD = targets_BD.double()
    q_BKD = torch.zeros(count, k, targets_BD.shape[1], dtype=torch.float64, device=device)
    r_BKK = torch.eye(k, dtype=torch.float64, device=device).repeat(count, 1, 1)
    projections_BK = torch.zeros(count, k, dtype=torch.float64, device=device)
    indices_BK = torch.zeros(count, k, dtype=torch.int64, device=device)
    scores_BS = torch.empty(count, len(atoms_SD), device=device)
    for step in range(k):
        torch.mm(residual_BD.float(), atoms_SD.T, out=scores_BS)
        scores_BS.abs_()
        scores_BS.scatter_(1, indices_BK[:, :step], -1.0)
        chosen = scores_BS.argmax(1)
        indices_BK[:, step] = chosen
        atom_BD = atoms_SD[chosen].double()
        length_B = atom_BD.norm(dim=1)
        along_BK = torch.zeros(count, step, dtype=torch.float64, device=device)
        for _ in range(2):  # Gram–Schmidt once more mends what rounding left
            again = torch.einsum("bkd,bd->bk", q_BKD[:, :step], atom_BD)
            atom_BD = atom_BD - torch.einsum("bk,bkd->bd", again, q_BKD[:, :step])
            along_BK += again
        rest_B = atom_BD.norm(dim=1)
        new_B = rest_B > _DEPENDENT * length_B
        q_BD = torch.where(new_B[:, None], atom_BD / rest_B.clamp_min(1e-300)[:, None], 0.0)
        q_BKD[:, step] = q_BD
        r_BKK[:, :step, step] = torch.where(new_B[:, None], along_BK, 0.0)
        r_BKK[at, step, step] = torch.where(new_B, rest_B, 1.0)
        projections_BK[:, step] = (q_BD * residual_BD).sum(1)
        residual_BD = residual_BD - projections_BK[:, step, None] * q_BD
    coefficients = torch.linalg.solve_triangular(r_BKK, projections_BK[:, :, None], upper=True)
    return indices_BK, coefficients[:, :, 0].float()
