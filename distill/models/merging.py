"""Whether an adapter of LoRA is better merged into its weight for a pass."""

from __future__ import annotations


def merging_is_cheaper(rows: int, d_in: int, d_out: int, rank: int, learns: bool) -> bool:
    """Compare the multiplications of W x + B (A x) and of (W + B A) x, for `rows` vectors x.

    Beside the product with W that both have, the adapter needs rows rank (d_in + d_out), and as often again for each
    of the gradients of x and of A and B. Merging needs rank d_in d_out, and where it learns rows d_in d_out for the
    gradient of W + B A, from which those of A and B follow by 2 rank d_in d_out.
    """
    beside = rows * rank * (d_in + d_out)
    if not learns:
        return rank * d_in * d_out < beside
    return (rows + 3 * rank) * d_in * d_out < 3 * beside
