"""The procedural cohort: layout, determinism, physics, and people who differ."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest

from unalike.cohort import phantom
from unalike.cohort.phantom import (
    MODALITIES,
    PhantomSettings,
    Tissue,
    add_rician_noise,
    draw_anatomy,
    draw_pictures,
    draw_signals,
    inversion_recovery_signal,
    make_phantom,
    spin_echo_signal,
)
from unalike.errors import FolderError, SettingsError
from unalike.seeds import generator_for

SMALL = PhantomSettings(subjects=4, size=32, slices=5, tumour_share=1.0)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("UNALIKE_PROGRESS", "off")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_phantom(out=tmp_path_factory.mktemp("phantom") / "cohort", settings=SMALL, seed=3)


@pytest.fixture(scope="module")
def people():
    settings = PhantomSettings(size=64, slices=3)
    scans = []
    for index in range(60):
        anatomy = draw_anatomy(settings=settings, seed=11, index=index)
        scans.append((anatomy, draw_pictures(anatomy=anatomy, settings=settings, seed=11, index=index)))
    return scans


def small_slice(pictures, z):
    """The four modalities of a slice at 32 × 32, as one vector of 8-bit values."""
    parts = []
    for modality in MODALITIES:
        picture = pictures[modality][:, :, z].reshape(32, 2, 32, 2).mean(axis=(1, 3))
        parts.append(np.clip(picture / np.percentile(picture, 99.5), 0, 1))
    return np.rint(np.concatenate(parts) * 255).ravel()


def test_the_layout_is_that_of_brats(cohort):
    folders = sorted(path.name for path in cohort.iterdir())
    assert folders == [f"BraTS_phantom_{number:04d}" for number in range(1, 5)]
    for name in folders:
        files = sorted(path.name for path in (cohort / name).iterdir())
        assert files == sorted(f"{name}_{part}.nii.gz" for part in (*MODALITIES, "seg"))


def test_nibabel_reads_every_file(cohort):
    labels = set()
    for path in cohort.rglob("*.nii.gz"):
        image = nibabel.load(path)
        assert image.shape == (32, 32, 5)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == pytest.approx((7.5, 7.5, 3.0))
        assert image.header.get_xyzt_units()[0] == "mm"
        voxels = np.asarray(image.dataobj)
        if path.name.endswith("_seg.nii.gz"):
            assert voxels.dtype == np.uint8
            labels |= set(np.unique(voxels).tolist())
        else:
            assert voxels.dtype == np.int16
            assert voxels.min() >= 0
            assert 500 < voxels.max() < 5000
    assert labels == {0, 1, 2, 4}


def test_the_affine_puts_the_field_of_view_around_the_origin():
    settings = PhantomSettings(size=48, slices=4)
    affine = draw_anatomy(settings=settings).affine
    first, last = affine @ (0, 0, 0, 1), affine @ (47, 47, 3, 1)
    assert first[:2] + last[:2] == pytest.approx(0)
    assert last[0] - first[0] == pytest.approx(240 - 5)
    assert last[2] - first[2] == pytest.approx(9)
    assert PhantomSettings(slices=60).spacing[2] == pytest.approx(1)


def test_a_subject_does_not_depend_on_how_many_there_are(cohort, tmp_path):
    fewer = PhantomSettings(subjects=2, size=32, slices=5, tumour_share=1.0)
    again = make_phantom(out=tmp_path / "again", settings=fewer, seed=3)
    other = make_phantom(out=tmp_path / "other", settings=fewer, seed=4)
    files = [path.relative_to(again) for path in again.rglob("*.nii.gz")]
    assert len(files) == 10
    for file in files:
        assert (again / file).read_bytes() == (cohort / file).read_bytes()
        if "seg" not in file.name:
            assert (again / file).read_bytes() != (other / file).read_bytes()


def test_memory_saving_chunks_do_not_show(monkeypatch):
    whole = draw_anatomy(settings=SMALL, index=1).tissue
    monkeypatch.setattr(phantom, "_CHUNK", 1)
    assert np.array_equal(draw_anatomy(settings=SMALL, index=1).tissue, whole)


def test_the_same_person_at_another_size():
    coarse = draw_anatomy(settings=PhantomSettings(size=32, slices=2), index=5).brain
    fine = draw_anatomy(settings=PhantomSettings(size=64, slices=2), index=5).brain
    shrunk = fine.reshape(32, 2, 32, 2, 2).mean(axis=(1, 3)) >= 0.5
    assert (coarse == shrunk).mean() > 0.98


def test_tumour_share():
    without = PhantomSettings(size=32, slices=4, tumour_share=0.0)
    with_tumour = PhantomSettings(size=32, slices=4, tumour_share=1.0)
    for index in range(6):
        healthy = draw_anatomy(settings=without, index=index)
        ill = draw_anatomy(settings=with_tumour, index=index)
        assert healthy.segmentation.max() == 0
        assert ill.segmentation.max() > 0
        # The same head: a tumour changes what is inside.
        assert np.array_equal(healthy.tissue >= Tissue.BONE, ill.tissue >= Tissue.BONE)


def test_spin_echo_by_hand():
    # 0.8 · (1 − e^(−500/1000)) · e^(−20/100) = 0.8 · 0.393469 · 0.818731
    assert spin_echo_signal(density=0.8, t1=1000, t2=100, tr=500, te=20) == pytest.approx(0.257716, abs=1e-6)


def test_inversion_recovery_by_hand():
    # |1 − 2e^(−0.5) + e^(−2)| · e^(−0.1) = |1 − 1.213061 + 0.135335| · 0.904837
    found = inversion_recovery_signal(density=1, t1=1000, t2=100, tr=2000, te=10, ti=500)
    assert found == pytest.approx(0.070330, abs=1e-6)
    null = 1000 * math.log(2 / (1 + math.exp(-2)))
    dark = inversion_recovery_signal(density=1, t1=1000, t2=100, tr=2000, te=10, ti=null)
    assert dark == pytest.approx(0, abs=1e-12)


def test_contrasts_of_the_modalities():
    for index in range(50):
        t1, t1ce, t2, flair = draw_signals(random=generator_for(0, "test", index))
        assert t1[Tissue.WHITE] > 1.05 * t1[Tissue.GREY] > 1.05 * t1[Tissue.FLUID]
        assert t2[Tissue.FLUID] > t2[Tissue.GREY] > t2[Tissue.WHITE]
        assert flair[Tissue.FLUID] < 0.25 * flair[Tissue.WHITE] < 0.25 * flair[Tissue.OEDEMA]
        assert t1ce[Tissue.ENHANCING] > 1.3 * t1[Tissue.ENHANCING]
        assert t1ce[Tissue.ENHANCING] > t1ce[Tissue.WHITE]
        assert t1[Tissue.AIR] == t2[Tissue.AIR] == flair[Tissue.AIR] == 0


def test_pictures_show_these_contrasts(people):
    for anatomy, pictures in people[:12]:
        centres = anatomy.tissue[::2, ::2]
        mean = {
            (modality, kind): pictures[modality][centres == kind].mean()
            for modality in MODALITIES
            for kind in (Tissue.FLUID, Tissue.GREY, Tissue.WHITE)
        }
        assert mean["t1", Tissue.WHITE] > mean["t1", Tissue.GREY] > mean["t1", Tissue.FLUID]
        assert mean["t2", Tissue.FLUID] > mean["t2", Tissue.GREY] > mean["t2", Tissue.WHITE]
        assert mean["flair", Tissue.FLUID] < mean["flair", Tissue.WHITE]


def test_rician_noise_in_air_and_in_tissue():
    random = np.random.default_rng(0)
    air = add_rician_noise(signal=np.zeros((100, 1000), np.float32), sigma=3.0, random=random)
    assert air.mean() == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.01)
    bright = add_rician_noise(signal=np.full((100, 1000), 300, np.float32), sigma=3.0, random=random)
    assert bright.std() == pytest.approx(3.0, rel=0.02)
    assert bright.mean() == pytest.approx(300, abs=0.1)


def test_the_background_of_a_picture_is_rayleigh(people):
    for _, pictures in people[:5]:
        air = np.concatenate([pictures["t2"][:6].ravel(), pictures["t2"][-6:].ravel()]).astype(float)
        # Mean over standard deviation, whatever the gain: √(π/2) / √(2 − π/2).
        assert air.mean() / air.std() == pytest.approx(1.913, rel=0.05)


def test_without_skull_the_outside_is_zero():
    settings = PhantomSettings(size=48, slices=3, skull=False)
    anatomy = draw_anatomy(settings=settings)
    for picture in draw_pictures(anatomy=anatomy, settings=settings).values():
        assert not picture[~anatomy.brain].any()
        assert picture[anatomy.brain].mean() > 100


def test_neighbours_are_alike_and_people_are_not(people):
    middle = np.array([small_slice(pictures, 1) for _, pictures in people])
    above = np.array([small_slice(pictures, 2) for _, pictures in people])
    between = np.corrcoef(middle)
    np.fill_diagonal(between, -1)
    beside = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(middle, above, strict=True)])
    assert beside.min() > 0.9
    assert (beside > between.max(axis=1)).all()
    assert between.max() < 0.95


def test_a_noisy_copy_stays_closest(people):
    middle = np.array([small_slice(pictures, 1) for _, pictures in people])
    noise = np.random.default_rng(1).normal(0, 5, middle.shape)
    copies = np.clip(np.rint(middle + noise), 0, 255)
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(middle, copies, strict=True)) > 0.98


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": 0},
        {"size": 8},
        {"slices": 0},
        {"tumour_share": 1.5},
        {"tumour_share": math.nan},
        {"noise": -0.1},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        PhantomSettings(**wrong)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="seed"):
        make_phantom(out=tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty"):
        make_phantom(out=tmp_path, settings=SMALL)
    with pytest.raises(FolderError, match="cannot be written"):
        make_phantom(out=tmp_path / "notes.txt", settings=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(out: Path, settings, seed, index):
        (out / f"subject-{index}").mkdir()
        if index == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(phantom, "_write_subject", fail)
    with pytest.raises(FolderError, match="No space left"):
        make_phantom(out=tmp_path / "out", settings=SMALL)
    assert list((tmp_path / "out").iterdir()) == []
