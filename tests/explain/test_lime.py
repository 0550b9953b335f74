"""LIME: linear worlds with known weights, a planted square, seeds, odd images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tests.explain.conftest import draw_squares, wrap
from torch import nn

from unalike.explain.agreement import measure_overlap
from unalike.explain.lime import (
    LEAST_PIXELS,
    PENALTY,
    explain_by_lime,
    find_superpixels,
    fit_ridge,
    hide_partly,
    weigh_picture,
)
from unalike.utility.classifier import Classifier

QUADRANTS = np.kron(np.arange(4).reshape(2, 2), np.ones((16, 16), dtype=np.int64))


class Brightness(nn.Module):
    """Scores whose softmax is linear: the first class has the mean of weights × pixels as its probability."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        share = (images[:, 0] * self.weights).mean(dim=(1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share.log(), (1 - share).log()], dim=1)


def linear(weights: np.ndarray) -> Classifier:
    return wrap(Brightness(weights), mean=(0.0,), deviation=(1.0,))


def test_weights_of_a_linear_classifier_are_what_each_superpixel_adds() -> None:
    given = np.asarray([0.8, 0.1, 0.4, 0.0])
    image = np.full((1, 32, 32), 255, np.uint8)
    found = explain_by_lime(
        linear(given[QUADRANTS]), image, target=0, segments=QUADRANTS, samples=4000, seed=0, hidden="zero"
    )
    # The penalty of 1 shrinks what some hundreds of counted pictures say by less than one in fifty.
    assert found.weights == pytest.approx(given / 4, rel=0.02, abs=1e-3)
    assert found.fit > 0.999
    assert np.array_equal(found.heat, found.weights[QUADRANTS])


def test_the_other_class_is_explained_by_the_opposite() -> None:
    classifier = linear(np.asarray([0.8, 0.1, 0.4, 0.0])[QUADRANTS])
    image = np.full((1, 32, 32), 255, np.uint8)
    one, two = (
        explain_by_lime(classifier, image, target=target, segments=QUADRANTS, samples=100, seed=0, hidden="zero")
        for target in (0, 1)
    )
    assert one.weights == pytest.approx(-two.weights, abs=1e-6)


def test_the_ridge_regression_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    kept = (random.random((80, 7)) < 0.5).astype(float)
    values, counts = random.random(80), random.random(80)
    weights, fit = fit_ridge(kept, values, counts)
    reference = Ridge(alpha=PENALTY).fit(kept, values, sample_weight=counts)
    assert weights == pytest.approx(reference.coef_, rel=1e-9)
    assert fit == pytest.approx(reference.score(kept, values, sample_weight=counts), rel=1e-9)


def test_a_picture_counts_less_the_more_is_hidden() -> None:
    kept = np.asarray([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert weigh_picture(kept) == pytest.approx([1.0, np.exp(-((0.5 / 0.25) ** 2)), np.exp(-16)])


def test_an_explanation_is_the_regression_on_the_pictures_that_were_asked_about() -> None:
    # Nothing between: what captum hands on is what the classifier said of those very masks.
    images, _, _ = draw_squares(2, seed=1)
    asked: list[np.ndarray] = []

    class Spy(Brightness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            asked.append(images[:, 0].detach().numpy().copy())
            return super().forward(images)

    image = np.maximum(images[1], 1)
    classifier = wrap(Spy(np.full((32, 32), 0.9)), mean=(0.0,), deviation=(1.0,))
    found = explain_by_lime(classifier, image, target=0, segments=QUADRANTS, samples=150, seed=4, hidden="zero")
    pictures = np.concatenate(asked)
    kept = pictures[:, [0, 0, 16, 16], [0, 16, 0, 16]] > 0
    values = (pictures * 0.9).mean(axis=(1, 2))
    weights, _ = fit_ridge(kept.astype(float), values.astype(float), weigh_picture(kept))
    assert len(pictures) == 150
    assert found.weights == pytest.approx(weights, abs=1e-5)


def test_seeds_reproduce_and_torch_keeps_its_random_numbers(trained: Classifier) -> None:
    images, _, _ = draw_squares(2, seed=5)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    same, again, other = (
        explain_by_lime(trained, images[1], target=1, segments=20, samples=60, seed=seed).weights for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


def test_the_square_explains_a_classifier_that_learnt_it_and_none_that_did_not(
    trained: Classifier, untrained: Callable[[int], Classifier]
) -> None:
    images, truth, squares = draw_squares(24, seed=9)
    assert (trained.predict(images).argmax(axis=1) == truth).mean() > 0.9

    def explain(classifier: Classifier, place: int) -> tuple[float, float, float]:
        found = explain_by_lime(classifier, images[place], target=1, segments=40, samples=120, seed=int(place))
        overlap = measure_overlap(found.heat, squares[place])
        return overlap.iou, overlap.inside, float(found.weights.max())

    shown = np.flatnonzero(truth)
    learnt = np.mean([explain(trained, place) for place in shown], axis=0)
    ignorant = np.mean([explain(untrained(seed), shown[seed % len(shown)]) for seed in range(24)], axis=0)
    assert (learnt > 0.5).all()
    assert (ignorant < 0.4).all()


def test_superpixels_are_numbered_without_gaps_and_never_too_many() -> None:
    images, _, _ = draw_squares(2, seed=2)
    for count in (2, 10, 500):
        segments = find_superpixels(images[1], count)
        assert segments.shape == (32, 32)
        assert np.array_equal(np.unique(segments), np.arange(segments.max() + 1))
        assert 1 < segments.max() + 1 <= 1.5 * min(count, 32 * 32 // LEAST_PIXELS)


def test_superpixels_follow_edges_in_any_channel() -> None:
    image = np.zeros((3, 40, 40), np.uint16)
    image[2, :, 23:] = 60000
    segments = find_superpixels(image, 20)
    assert not set(segments[:, :23].ravel()) & set(segments[:, 23:].ravel())


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 8, 50), (1, 4, 4)])
def test_constant_images_are_cut_into_tiles(shape: tuple[int, int, int]) -> None:
    segments = find_superpixels(np.full(shape, 7, np.uint8), 12)
    assert np.array_equal(np.unique(segments), np.arange(segments.max() + 1))
    assert 2 <= segments.max() + 1 <= 12


def test_a_constant_image_is_explained_by_nothing(trained: Classifier) -> None:
    found = explain_by_lime(trained, np.full((1, 32, 32), 9, np.uint8), target=0, segments=20, samples=50, seed=0)
    assert np.abs(found.weights).max() < 1e-6
    assert np.isnan(found.fit)


@pytest.mark.parametrize("hidden", ["mean", "blur", "zero"])
def test_hidden_parts_show_what_was_asked_for_in_the_channels_that_are_seen(hidden: str) -> None:
    images, _, _ = draw_squares(2, seed=3)
    image = np.concatenate([images[0], images[1]])
    other = hide_partly(wrap(nn.Identity(), channels=(1,)), image, QUADRANTS, hidden=hidden).other
    assert np.array_equal(other[0], image[0])
    if hidden == "blur":
        assert other[1].std() < image[1].std()
        assert other[1].mean() == pytest.approx(image[1].mean(), abs=3)
    else:
        assert (other[1] == (0 if hidden == "zero" else np.rint(image[1].mean()))).all()
