"""Masks of the tokens that the pre-training encoders do not see; True = masked."""

import numpy as np


def tube_mask(
    grid: tuple[int, int, int], mask_ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Mask the same random cells, `mask_ratio` of them rounded down, in every row of tubelets.

    `grid` is the tokens along (time, height, width), (8, 10, 10) for the published model. Returns
    (N,) bool, N = time * height * width, in that order of tokens (width fastest).
    """
    depth, height, width = grid
    cells = random_mask(height * width, mask_ratio, rng, f"patches in a {height}x{width} grid")
    return np.tile(cells, depth)


def random_mask(
    num_cells: int, mask_ratio: float, rng: np.random.Generator, cells: str = "tokens"
) -> np.ndarray:
    """Return (N,) bool with `int(mask_ratio * N)` of N = `num_cells` masked at random.

    ValueError where a ratio above 0 masks nothing or everything.
    """
    num_masked = int(mask_ratio * num_cells)
    if not (0 < num_masked < num_cells or mask_ratio == 0):
        text = f"mask_ratio {mask_ratio} hides {num_masked} of {num_cells} {cells}"
        raise ValueError(f"{text}; at least one patch must stay visible and one masked")
    mask = np.zeros(num_cells, dtype=bool)
    mask[rng.permutation(num_cells)[:num_masked]] = True
    return mask
