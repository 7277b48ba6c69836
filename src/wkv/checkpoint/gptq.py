"""Rounding a matrix to 4 bits so that its products, not its weights, come out right.

The columns of a matrix are rounded one after the other, and what each one's rounding does wrong is
made good by the columns still to come, as far as the inputs seen in calibration are correlated
(Frantar et al., GPTQ, 2022). Scales and offsets of the groups are chosen before, columns with the
largest inputs go first.
"""

from __future__ import annotations

import numpy as np

from .. import _native
from .packed import Q4_GROUP, Q4Values, q4_headers

# Columns whose inputs' correlations are used together: bounds time and memory for wide matrices.
SPAN = 2048
# Added to the diagonal, as a share of its mean: what too few calibration tokens leave undetermined.
DAMPING = 0.01


def moments(inputs: np.ndarray) -> list[np.ndarray]:
    """Mean products of a matrix's inputs [N, cols]: float64 [n, n] for each span of columns."""
    spans = [inputs[:, at : at + SPAN] for at in range(0, inputs.shape[1], SPAN)]
    return [(x.T @ x).astype(np.float64) / len(x) for x in spans]


def fit(weights: np.ndarray, moments: list[np.ndarray], *, threads: int) -> Q4Values:
    """4-bit values of ``weights`` [rows, cols] float32 that minimise the error of its products."""
    values = []
    for span, moment in enumerate(moments):
        part = weights[:, span * SPAN : (span + 1) * SPAN]
        values.append(_fit_span(np.ascontiguousarray(part), moment, threads))
    return Q4Values(*(np.concatenate(arrays, axis=1) for arrays in zip(*values)))


def _fit_span(weights: np.ndarray, moment: np.ndarray, threads: int) -> Q4Values:
    rows, cols = weights.shape
    power = np.diag(moment)
    mean = power.mean()
    if not mean > 0:  # no input ever reached these columns
        power, mean, moment = np.ones(cols), 1.0, np.eye(cols)
    importance = (power / mean + DAMPING).astype(np.float32)
    scale, offset = q4_headers(_native.pack(weights, "q4", 1, importance, threads), rows, cols)
    order = np.argsort(-power, kind="stable")
    damped = moment[np.ix_(order, order)] + np.eye(cols) * (DAMPING * mean)
    # Row i of the Cholesky factor of the inverse says how an error in column i is best spread over
    # the columns after it.
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weights[:, order].T.copy()  # [cols, rows]: a column is contiguous
    steps = np.empty((cols, rows), np.uint8)
    groups = order // Q4_GROUP
    # A scale of zero marks a constant group, whose offset is all there is.
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scale, offset, inverse = (np.ascontiguousarray(a.T) for a in (scale, offset, inverse))
    for start in range(0, cols, Q4_GROUP):
        stop = min(start + Q4_GROUP, cols)
        errors = np.empty((stop - start, rows), np.float32)
        for i in range(start, stop):
            group = groups[i]
            step = np.clip(np.rint((left[i] - offset[group]) * inverse[group]), 0, 15)
            steps[i] = step
            error = (left[i] - (scale[group] * step + offset[group])) / spread[i, i]
            errors[i - start] = error
            left[i + 1 : stop] -= spread[i, i + 1 : stop, None] * error
        left[stop:] -= spread[start:stop, stop:].T @ errors
    values = np.empty((rows, cols), np.uint8)
    values[:, order] = steps.T
    return Q4Values(values, scale.T, offset.T)
