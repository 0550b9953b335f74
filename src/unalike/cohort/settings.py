"""What `prepare_cohort` can be told."""

# Without `from __future__ import annotations`: settings elsewhere inherit fields from here, and who reads their types
# (the command line) must find them evaluated.

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unalike.errors import SettingsError
from unalike.images.geometry import Fit
from unalike.images.pictures import Color
from unalike.images.volumes import Axis

OnBadFile = Literal["error", "skip"]
OnLeak = Literal["merge-subjects", "drop", "error", "report"]
Split = Literal["redraw", "keep"]
SliceChoice = Literal["content", "lesion"]

# Columns that name a person: none of them is taken as an attribute.
_IDENTIFIER = re.compile(r"patient.?id|name|birth|mrn|accession|address", re.IGNORECASE)


@dataclass(frozen=True)
class PictureSettings:
    """How plain folders of pictures are read where they stand in for folders of ours."""

    subject_pattern: str | None = None
    """Plain folders: regular expression over the path whose first group (or whole match) names the patient."""

    volume_pattern: str | None = None
    """Plain folder of synthetic slices: regular expression over the path whose first group (or whole match) names the
    volume; slices of one volume then count, and in an audit vote for a patient, together."""

    size: int | None = None
    """Plain folders: bring all pictures to this height and width in pixels."""

    fit: Fit = "pad"
    """Plain folders: reach the size by padding, stretching, or cropping."""

    color: Color = "auto"
    """Plain folders: keep gray or colour as they are, or turn all into gray or rgb."""


@dataclass(frozen=True)
class PrepareSettings:
    """Everything that decides what a cohort holds; saved in its header.

    The defaults are those of the recipes folder and nifti. Other recipes have their own: build their settings with
    `unalike.recipe_settings`.
    """

    recipe: str = "folder"
    """How the source is laid out; `unalike recipes` lists them. Or a TOML file with a recipe of your own."""

    size: int | None = None
    """Height and width of every image in pixels; without it, pictures keep their size and must all be alike."""

    holdout: float = 0.2
    """Subjects that no generator will see, drawn at random: a share below 1, or from 1 on how many."""

    stratify: bool = False
    """Draw the holdout within each class, so that every class is held out alike."""

    limit: int | None = None
    """Keep at most this many pictures or scans for train, drawn at random; a holdout share shrinks with it."""

    balance: bool = False
    """Keep equally many pictures or scans of each class, drawn at random."""

    classes: tuple[str, ...] = ()
    """Take these classes only; default all that the recipe takes."""

    on_leak: OnLeak = "merge-subjects"
    """What to do where subjects of different names share a picture, near duplicates and mirrored ones included:
    merge them into one, drop the images, stop with an error, or only report."""

    near_duplicates: float = 0.95
    """Images of different subjects that correlate at least this much count as duplicates; 0 looks for none."""

    split: Split = "redraw"
    """redraw the roles by subject, or keep the train and test folders of the source."""

    subject_pattern: str | None = None
    """Regular expression over the path below SOURCE whose first group (or whole match) names the patient; default
    what the recipe says."""

    labels: bool | None = None
    """Take classes, or --no-labels. Without a word, classes that a recipe names are taken; of any folder of pictures
    the innermost folder's name only where it cannot be a patient's: several patients have each (--subject-pattern), or
    each stands in train and in test."""

    on_bad_file: OnBadFile = "error"
    """Stop at the first file that cannot be read or does not fit the others, or skip such files and list them."""

    fit: Fit = "pad"
    """Reach --size by padding with zeros (aspect kept), stretching, or cropping."""

    color: Color = "auto"
    """Pictures: keep gray or colour as they are, or turn all into gray or rgb."""

    depth: Literal["auto", "8", "16"] = "auto"
    """Bits per pixel; auto keeps what pictures have, and scales volumes to 8."""

    crop_borders: bool = False
    """Pictures: crop black borders before fitting."""

    channel_pattern: str | None = None
    """Volumes: regular expression over the path (DICOM: the series description) whose first group (or whole match)
    names the channel."""

    channels: tuple[str, ...] = ()
    """Volumes: channels to take, in this order; without it, all that are found."""

    mask_scale: int = 51
    """Volumes: gray levels per label of the mask (1, 2, 4 become 51, 102, 204 as in Akbar et al. 2025); 0 spreads the
    labels over the whole range."""

    mask_labels: tuple[int, ...] = ()
    """Volumes: labels that a mask may hold besides 0; a volume with others is refused. Default any."""

    axis: Axis = "axial"
    """Volumes: slice along this anatomical axis."""

    percentiles: tuple[float, float] = (0.5, 99.5)
    """Volumes: these percentiles of each volume become 0 and 255."""

    content_above: int = 50
    """Volumes: a pixel above this level (of 255) in any channel counts as content."""

    least_content: float = 0.15
    """Volumes: keep slices with at least this share of content pixels (before padding)."""

    spacing: tuple[float, float, float] | None = None
    """Volumes: resample to voxels of this size in millimetres (right, anterior, superior). Default: as they are."""

    crop: tuple[int, int, int] | None = None
    """Volumes: crop (or zero-pad) to this many voxels around the middle, after resampling."""

    resample_channels: bool = False
    """Volumes: bring channels onto the grid of the first; without it, channels on different grids are refused."""

    slice_choice: SliceChoice = "content"
    """Volumes: slices with enough content; or one slice, with most of the lesion or else the organ's median."""

    window: tuple[float, float] | None = None
    """DICOM: center and width of the gray window, in the units after rescaling (Hounsfield for CT). Default:
    percentiles."""

    derived: bool = False
    """DICOM: take derived, secondary and localizer series too."""

    slices: int | None = None
    """Volumes: keep at most this many slices per volume, evenly spaced; 1 is the middle one. Default: all."""

    attributes: tuple[str, ...] = ()
    """What records keep of each subject, such as age and sex: columns of the recipe's table or of --attributes-table;
    DICOM: header fields; volumes: position, the slice's relative place. Ages above 89 become 90."""

    attributes_table: str | None = None
    """CSV file with the columns of --attributes. Its first column holds the patient (as --subject-pattern finds it),
    the path below SOURCE, or the file's name."""

    def check(self) -> None:
        """Raise `SettingsError` for a value of another type or one that makes no sense."""
        for name, kind in get_type_hints(type(self)).items():
            if not _is_of(getattr(self, name), kind):
                raise SettingsError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: give {_describe(kind)}.")
        for wrong, message in (
            (self.size is not None and not 4 <= self.size <= 4096, f"--size {self.size}: give 4 to 4096 pixels."),
            (self.slices is not None and self.slices < 1, f"--slices {self.slices}: give 1 or more."),
            (self.limit is not None and self.limit < 1, f"--limit {self.limit}: give 1 or more."),
            (
                not 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
                f"--percentiles {self.percentiles}: give two rising numbers from 0 to 100.",
            ),
            (
                not 0 <= self.least_content <= 1,
                f"--least-content {self.least_content}: give a share from 0 to 1.",
            ),
            (not 0 <= self.mask_scale <= 255, f"--mask-scale {self.mask_scale}: give 0 to 255."),
            (
                self.near_duplicates != 0 and not 0.5 <= self.near_duplicates <= 1,
                f"--near-duplicates {self.near_duplicates}: give a correlation from 0.5 to 1, or 0 to look for none.",
            ),
            (
                self.spacing is not None and not all(0.05 <= step <= 50 for step in self.spacing),
                f"--spacing {self.spacing}: give three sizes from 0.05 to 50 mm.",
            ),
            (
                self.crop is not None and not all(1 <= side <= 4096 for side in self.crop),
                f"--crop {self.crop}: give three sides from 1 to 4096 voxels.",
            ),
            (
                self.window is not None and not self.window[1] >= 1,
                f"--window {self.window}: give a width of 1 or more.",
            ),
        ):
            if wrong:
                raise SettingsError(message)
        self._check_attributes()

    def _check_attributes(self) -> None:
        naming = [name for name in self.attributes if _IDENTIFIER.search(name)]
        if naming:
            raise SettingsError(f"--attributes {naming[0]}: its name says that it identifies a person. Leave it out.")
        if len(set(self.attributes)) < len(self.attributes) or not all(map(str.strip, self.attributes)):
            raise SettingsError(
                f"--attributes {' '.join(self.attributes)}: give each name once, and none that is empty."
            )
        if self.attributes_table is not None and not self.attributes:
            raise SettingsError(f"--attributes-table {self.attributes_table}: name its columns with --attributes.")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type of the settings above."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if inner:  # X | None
        return any(_is_of(value, one) for one in inner)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list"
    return " or ".join(names[one] for one in get_args(kind)) if get_args(kind) else names[kind]
