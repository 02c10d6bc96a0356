"""The numbers that make an instance of a function, as COCO draws them."""

import numpy as np

# The generator of Park and Miller, with Schrage's way to stay within 32 bits.
MULTIPLIER, MODULUS, QUOTIENT, REMAINDER = 16807, 2**31 - 1, 127773, 2836
# The table that shuffles what the generator returns.
TABLE, WARM_UP, SLOT = 32, 40, 67108865


def uniform(count: int, seed: int) -> np.ndarray:
    """Numbers in (0, 1], float64 `[count]`."""
    state = max(abs(seed), 1)
    table = [0] * TABLE
    for at in reversed(range(WARM_UP)):
        state = _next(state)
        if at < TABLE:
            table[at] = state
    last, numbers = table[0], np.empty(count)
    for at in range(count):
        state = _next(state)
        slot = last // SLOT
        last, table[slot] = table[slot], state
        numbers[at] = last / MODULUS
    return np.where(numbers == 0, 1e-99, numbers)


def normal(count: int, seed: int) -> np.ndarray:
    """Normal numbers, by the transform of Box and Muller, float64 `[count]`."""
    radius, angle = uniform(2 * count, seed).reshape(2, count)
    numbers = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    return np.where(numbers == 0, 1e-99, numbers)


def rotation(dimension: int, seed: int) -> np.ndarray:
    """An orthogonal matrix: normal numbers whose columns are made orthonormal in order."""
    matrix = normal(dimension**2, seed).reshape(dimension, dimension).T.copy()
    for at in range(dimension):
        for before in range(at):
            matrix[:, at] -= (matrix[:, at] @ matrix[:, before]) * matrix[:, before]
        matrix[:, at] /= np.sqrt(np.sum(matrix[:, at] ** 2))
    return matrix


def optimum(dimension: int, seed: int) -> np.ndarray:
    """A point of [-4, 4] with four digits in each entry."""
    point = 8 * np.floor(1e4 * uniform(dimension, seed)) / 1e4 - 4
    return np.where(point == 0, -1e-5, point)


def offset(seed: int) -> float:
    """The value at the optimum: a quotient of normal numbers, within 1000 of zero."""
    value = 100 * normal(1, seed)[0] / normal(1, seed + 1)[0]
    rounded = np.floor(100 * value + 0.5) / 100
    return float(np.clip(rounded, -1000, 1000))


def _next(state: int) -> int:
    high = state // QUOTIENT
    after = MULTIPLIER * (state - high * QUOTIENT) - REMAINDER * high
    return after + MODULUS if after < 0 else after
