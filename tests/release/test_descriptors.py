from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg, stats
from tests.release.test_bundle_images import all_rows, make_folder, make_images

from unalike.errors import InputError
from unalike.records import as_json
from unalike.release.descriptors import (
    FEWEST_SUBJECTS,
    NAMES,
    Moments,
    describe,
    describe_folder,
    frechet_between,
    moments_from_json,
    moments_of,
    name_descriptors,
    nominal_reference,
    round_moments,
)


def _value(image: np.ndarray, name: str) -> float:
    return float(describe(image[None, None])[0, NAMES.index(name)])


def _moments(mean: list[float], covariance: np.ndarray) -> Moments:
    return Moments(np.asarray(mean, dtype=np.float64), covariance, 60, 60, ())


def test_grey_levels_of_a_picture_of_which_a_quarter_is_white() -> None:
    image = np.zeros((8, 8), np.uint8)
    image[:4, :4] = 255
    assert _value(image, "mean") == 0.25
    assert _value(image, "sd") == pytest.approx(np.sqrt(0.25 * 0.75))
    assert _value(image, "skewness") == pytest.approx((1 - 2 * 0.25) / np.sqrt(0.25 * 0.75))  # Bernoulli
    assert _value(image, "quantile 0.5") == 0
    assert _value(image, "quantile 0.9") == 1
    assert _value(image, "asymmetry") == pytest.approx(0.5)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 3, (16, 1))
    assert _value(ramp, "gradient") == pytest.approx(3 / 255)
    assert _value(ramp.T.copy(), "gradient") == pytest.approx(3 / 255)


@pytest.mark.parametrize(("cycles", "band"), [(1, 1), (16, 8)])
def test_the_energy_of_a_wave_lies_in_its_band(cycles: int, band: int) -> None:
    wave = np.cos(2 * np.pi * cycles * np.arange(32) / 32)
    image = np.rint(100 + 50 * np.tile(wave, (32, 1))).astype(np.uint8)
    assert _value(image, f"band {band}") > 0.99
    shares = describe(image[None, None])[0, [NAMES.index(f"band {number}") for number in range(1, 9)]]
    assert shares.sum() == pytest.approx(1)


def test_a_plain_picture_has_no_energy_and_no_skewness() -> None:
    found = describe(np.full((1, 1, 8, 8), 51, np.uint8))[0]
    assert np.isfinite(found).all()
    assert found[NAMES.index("mean")] == pytest.approx(0.2)
    wanted = {"mean", *(name for name in NAMES if name.startswith("quantile"))}
    assert {name for name, value in zip(NAMES, found, strict=True) if value > 1e-12} == wanted


def test_skewness_is_scipys() -> None:
    image = make_images(1, dtype=np.uint16)[0, 0]
    assert _value(image, "skewness") == pytest.approx(float(stats.skew(image.ravel().astype(float))))


def test_eight_and_sixteen_bits_of_the_same_picture_agree() -> None:
    image = make_images(2, channels=2)
    np.testing.assert_allclose(
        describe(image), describe(image.astype(np.uint16) * np.uint16(257)), rtol=1e-9, atol=1e-12
    )


def test_an_image_gets_the_same_alone_and_among_others() -> None:
    images = make_images(5, channels=3)
    together = describe(images)
    assert together.shape == (5, 3 * len(NAMES)) == (5, len(name_descriptors(["a", "b", "c"])))
    for row, image in enumerate(images):
        np.testing.assert_array_equal(describe(image[None])[0], together[row])


def test_a_set_is_at_distance_0_of_itself() -> None:
    vectors = describe(make_images(60))
    moments = moments_of(vectors, np.arange(60).astype(str))
    assert frechet_between(moments, moments) == pytest.approx(0, abs=1e-9)


def test_a_shift_by_one_sd_of_one_number_is_1() -> None:
    covariance = np.array([[4.0, 1.0, 0], [1, 2, 0], [0, 0, 9]])
    reference = _moments([1, 2, 3], covariance)
    assert frechet_between(_moments([3, 2, 3], covariance), reference) == pytest.approx(1)
    assert frechet_between(_moments([3, 2, 9], covariance), reference) == pytest.approx(1 + 4)


def test_independent_numbers_of_other_spread_have_the_closed_form() -> None:
    reference = _moments([0, 0], np.diag([1.0, 4.0]))
    found = _moments([0, 0], np.diag([9.0, 4.0]))
    assert frechet_between(found, reference) == pytest.approx((np.sqrt(9.001) - np.sqrt(1.001)) ** 2)


def test_the_distance_is_that_of_the_matrix_root() -> None:
    random = np.random.default_rng(3)
    first, second = (
        moments_of(random.normal(0, 1, (80, 4)) @ random.normal(0, 1, (4, 4)), np.arange(80).astype(str)) for _ in "ab"
    )
    scale = np.sqrt(np.diag(second.covariance))
    one, two = (each.covariance / np.outer(scale, scale) + 1e-3 * np.eye(4) for each in (first, second))
    shift = (first.mean - second.mean) / scale
    wanted = shift @ shift + np.trace(one + two - 2 * np.real(linalg.sqrtm(one @ two)))
    assert frechet_between(first, second) == pytest.approx(wanted, rel=1e-8)


def test_a_number_that_never_varies_does_not_decide() -> None:
    reference = _moments([0, 0], np.diag([1.0, 0.0]))
    assert frechet_between(_moments([0, 0.01], np.diag([1.0, 0.0])), reference) == pytest.approx(1)


def test_subjects_weigh_the_same_however_many_images_they_have() -> None:
    vectors = np.array([[0.0], [0], [0], [6]])
    moments = moments_of(vectors, np.array(["a", "a", "a", "b"]))
    assert moments.mean == pytest.approx(3)
    assert moments.covariance == pytest.approx(18)  # of 0 and 6, divided by one less than their number
    assert (moments.n_subjects, moments.n_images) == (2, 4)


def test_one_image_a_subject_gives_numpys_covariance() -> None:
    vectors = np.random.default_rng(0).normal(0, 1, (30, 3))
    moments = moments_of(vectors, np.arange(30).astype(str))
    np.testing.assert_allclose(moments.covariance, np.cov(vectors.T))


def test_few_subjects_are_never_described(tmp_path: Path) -> None:
    count = FEWEST_SUBJECTS
    enough = [{"subject": f"p{row}", "role": "train"} for row in range(count)]
    cohort = make_folder(tmp_path / "a", make_images(count), kind="cohort", records=enough)
    assert nominal_reference(cohort, all_rows(cohort)[1:]) is None
    reference = nominal_reference(cohort, all_rows(cohort))
    assert reference is not None
    assert reference.n_subjects == count
    exact = describe_folder(cohort, all_rows(cohort))
    np.testing.assert_allclose(reference.mean, exact.mean, rtol=1e-3)
    assert all(float(f"{value:.3e}") == value for value in [*reference.mean, *reference.covariance.ravel()])


def test_moments_come_back_from_json_to_the_last_bit() -> None:
    moments = round_moments(
        moments_of(describe(make_images(9)), np.arange(9).astype(str), names=name_descriptors(["x"]))
    )
    back = moments_from_json(json.loads(json.dumps(as_json(moments))))
    np.testing.assert_array_equal(back.mean, moments.mean)
    np.testing.assert_array_equal(back.covariance, moments.covariance)
    assert back.names == moments.names


def test_what_cannot_be_compared_is_refused() -> None:
    one, two = _moments([0], np.eye(1)), _moments([0, 0], np.eye(2))
    with pytest.raises(InputError, match="other channels"):
        frechet_between(one, two)
    with pytest.raises(InputError, match="not finite"):
        frechet_between(_moments([np.nan], np.eye(1)), one)
    with pytest.raises(InputError, match="at least one"):
        moments_of(np.empty((0, 3)), np.empty(0, np.str_))
    with pytest.raises(InputError, match="damaged"):
        moments_from_json({"mean": [1]})
    with pytest.raises(InputError, match="do not fit"):
        moments_from_json({"mean": [1, 2], "covariance": [[1]], "names": [], "n_subjects": 1, "n_images": 1})
