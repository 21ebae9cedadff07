import numpy as np
import pytest

from serving.bundle.quantize import NUM_CODES, decode, encode, groups_of, learn_codebook


def normal(num_rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (num_rows, width)).astype(np.float32)


def rounded(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values as their own codebook returns them, and the codebook."""
    codebook = learn_codebook(groups_of(values, size).reshape(-1, size))
    return decode(encode(values, codebook), codebook.astype(np.float32), values.shape[1]), codebook


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_each_group_gets_the_nearest_entry(size: int, width: int) -> None:
    values = normal(300, width)
    codebook = learn_codebook(groups_of(values, size).reshape(-1, size)).astype(np.float64)
    codes = encode(values, codebook)
    for row, row_codes in zip(values.astype(np.float64), codes, strict=True):
        for place, code in enumerate(row_codes):
            group = np.zeros(size)
            part = row[place * size : (place + 1) * size]
            group[: len(part)] = part
            distances = np.square(codebook - group).sum(axis=1)
            assert distances[code] == pytest.approx(distances.min(), rel=1e-9, abs=1e-18)


def test_errors_are_those_of_the_best_codebooks() -> None:
    """256 levels for a normal variable leave Panter and Dite's sqrt(3) pi / 2 / 256^2 of its variance.

    256 pairs do better than 16 levels for each of two (.01154, Max 1960), by more than the 1.05 that hexagons bring.
    """
    values = normal(60_000, 1)
    error = np.square(rounded(values, 1)[0] - values).mean() / 0.01
    assert 0.9 * np.sqrt(3) * np.pi / 2 / 256**2 < error < 1.15 * np.sqrt(3) * np.pi / 2 / 256**2
    values = normal(30_000, 2)
    error = np.square(rounded(values, 2)[0] - values).mean() / 0.01
    assert error < 0.01154 / 1.15


def test_pairs_use_that_neighbours_are_large_together() -> None:
    """Rows of very different length, as frequent and rare values have them: 256 pairs beat any 16 levels by far."""
    generator = np.random.default_rng(1)
    values = normal(20_000, 2) * generator.choice([0.02, 1.0], (20_000, 1)).astype(np.float32)
    levels = np.quantile(values, (np.arange(16) + 0.5) / 16)
    for _ in range(200):  # Lloyd's algorithm in one dimension, the plain way
        codes = np.abs(values.reshape(-1, 1) - levels).argmin(axis=1)
        levels = np.array([values.reshape(-1)[codes == code].mean() for code in range(16)])
    sixteen = np.square(values.reshape(-1) - levels[codes]).mean()
    assert np.square(rounded(values, 2)[0] - values).mean() < 0.7 * sixteen


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_few_different_groups_are_kept_as_they_are(size: int) -> None:
    groups = normal(NUM_CODES - 1, size).astype(np.float16).astype(np.float32)
    values = groups[np.random.default_rng(0).integers(0, len(groups), 5_000)]
    back, codebook = rounded(np.concatenate([values, np.zeros((7, size), np.float32)]), size)
    assert np.array_equal(back[:5_000], values)
    assert not back[5_000:].any()
    assert not codebook[0].any()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_zero_is_zero(size: int) -> None:
    values = normal(3_000, 4) + 1
    values[::3] = 0
    assert not rounded(values, size)[0][::3].any()


def test_entries_close_to_each_other_stay_apart() -> None:
    """Neighbouring halves far from zero differ by less than float32 rounds away of their squares."""
    codebook = np.zeros((NUM_CODES, 2), dtype=np.float16)
    codebook[1:] = np.stack([np.full(255, 1000.0), 1000 + 0.5 * np.arange(255)], axis=1)
    values = codebook.astype(np.float32)
    assert np.array_equal(decode(encode(values, codebook), codebook.astype(np.float32), 2), values)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_codebook_is_the_same_every_time(size: int) -> None:
    groups = normal(4_000, size)
    assert np.array_equal(learn_codebook(groups), learn_codebook(groups.copy()))
