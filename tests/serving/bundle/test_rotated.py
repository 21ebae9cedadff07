import itertools

import numpy as np
import pytest

from serving.bundle.rotated import RotatedCodebooks, _least_error, group_sizes


def rows_of(num_rows: int, deviations: list[float]) -> np.ndarray:
    """Normal rows of these deviations along directions that are no columns."""
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(len(deviations), len(deviations))))[0]
    return (generator.normal(size=(num_rows, len(deviations))) * deviations @ directions.T).astype(np.float32)


def test_the_sizes_promise_the_least_error_of_all_ways_to_cut() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        variances = np.sort(np.exp(generator.normal(0, 2, 7)))[::-1]
        for num_groups in range(1, 8):
            found = group_sizes(variances, num_groups)
            assert len(found) == num_groups
            promised = {}
            for cuts in itertools.combinations(range(1, 7), num_groups - 1):
                edges = [0, *cuts, 7]
                promised[cuts] = sum(_least_error(variances[i:j]) for i, j in itertools.pairwise(edges))
            assert promised[tuple(np.cumsum(found)[:-1].tolist())] == pytest.approx(min(promised.values()))


def test_equal_variances_are_shared_evenly() -> None:
    """Eight bits for two variables of variance 1 leave 2^-8 of each: Shannon's 2^(-2R) at R = 4."""
    assert group_sizes(np.ones(16), 8) == [2] * 8
    assert _least_error(np.ones(2)) == pytest.approx(2 * 2**-8)
    assert _least_error(np.array([1.0, 1e-9])) == pytest.approx(2**-16, rel=1e-3)


def test_rotation_finds_what_few_directions_hold() -> None:
    """Sixteen columns that are mixtures of three: three bytes per row are nearly exact, which plain pairs are not."""
    rows = rows_of(5_000, [1.0, 0.5, 0.3, *[1e-4] * 13])
    coder = RotatedCodebooks.learn(rows, 4)
    assert coder.sizes[:3] == [1, 1, 1]
    error = np.square(coder.decode(coder.encode(rows), 16) - rows).mean()
    assert error < 3e-4 * np.square(rows).mean()


def test_a_row_is_the_sum_of_its_vectors_whoever_else_is_read() -> None:
    rows = rows_of(400, [1.0, 0.8, 0.2, 0.1, 0.05])
    coder = RotatedCodebooks.learn(rows, 2)
    codes = coder.encode(rows)
    together = coder.decode(codes, 5)
    for row in range(0, 400, 37):
        assert np.array_equal(coder.decode(codes[row : row + 1], 5)[0], together[row])
        turned, start = np.zeros(5), 0
        for group, size in enumerate(coder.sizes):
            turned[start : start + size] = coder.codebook[codes[row, group], start : start + size]
            start += size
        assert np.allclose(coder.rotation.astype(np.float64) @ turned, together[row], rtol=0, atol=1e-6)


def test_no_rows_and_zero_rows() -> None:
    assert not RotatedCodebooks.learn(np.zeros((0, 4), np.float32), 2).codebook.any()
    rows = np.concatenate([rows_of(300, [1.0, 0.5, 0.2]), np.zeros((2, 3), np.float32)])
    coder = RotatedCodebooks.learn(rows, 2)
    assert not coder.decode(coder.encode(rows), 3)[-2:].any()
