"""Rounds one column after another and lets those that follow make up for what each one lost.

What a row's errors e do to a product is Σ eᵢ Mᵢⱼ eⱼ, with M = mean x xᵀ of the inputs x. Let U be
upper triangular with M⁻¹ = Uᵀ U. Once column i is off by eᵢ, the best that the later columns j can
do is to move by −eᵢ Uᵢⱼ / Uᵢᵢ before they are rounded in turn. Scales and zero points stay as they
were searched, so that kernels see no difference.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022 (arXiv:2210.17323), section 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.jit import compiled

Floats = NDArray[np.float32]

DAMPING = 0.01  # of the mean square of all columns is added to each: a text is short


def feedback(moments: Floats) -> Floats:
    """How far each column moves the later ones, `[K, K]`: Uᵢⱼ / Uᵢᵢ.

    Args:
        moments: `[K, K]`, the mean of x xᵀ over what flows in.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * np.diag(damped).mean() + 1e-12
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    return np.ascontiguousarray(factor / np.diag(factor)[:, None], np.float32)


@compiled
def follow(
    values: Floats,
    scales: Floats,
    zeros: Floats,
    top: float,
    moved: Floats,
    codes: NDArray[np.uint8],
) -> None:
    """Choose the codes of a matrix, the columns of a row in order.

    Args:
        values: `[N, K]`, the matrix.
        scales: `[N, K/block]`, of each block.
        zeros: `[N, K/block]`, zero point of each block.
        top: highest code.
        moved: see `feedback`.
        codes: `[N, K]`, receives a byte for each value.
    """
    num_columns = values.shape[1]
    block = num_columns // scales.shape[1]
    last = np.float32(top)
    for row in range(values.shape[0]):
        rest = values[row].copy()
        for column in range(num_columns):
            scale, zero = scales[row, column // block], zeros[row, column // block]
            code = zero
            if scale != 0:
                code = np.rint(rest[column] / scale) + zero
                code = min(max(code, np.float32(0)), last)
            codes[row, column] = np.uint8(np.int32(code))
            error = rest[column] - scale * (code - zero)
            later, shares = rest[column + 1 :], moved[column, column + 1 :]
            for i in range(later.size):
                later[i] -= error * shares[i]
