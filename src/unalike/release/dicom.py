"""Images of a bundle as DICOM Secondary Capture: derived, marked synthetic, with new identifiers.

Written from the DICOM standard: PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6 (its modules, and
(0018,2010) Nominal Scanned Pixel Spacing), C.12.1.1 (Synthetic Data), C.7.6.3 (pixels). Explicit VR little endian,
uncompressed. One study a sample, one series a channel; slices of a volume are the instances of a series. A file says
nothing that is not known: no dates, no times, no body part, and of faces nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from unalike import folders
from unalike.records import Pixels
from unalike.release.nifti import Grid
from unalike.release.png import is_colour

if TYPE_CHECKING:
    from unalike.release.images import Unit

COLOUR = "colour"  # the description of a series of colour pictures
_LONG_STRING = 64  # characters of a value of kind LO
_SHORT_STRING = _DECIMAL_STRING = 16  # of kinds SH and DS
# Towards which part of the patient a RAS direction points (PS3.3 C.7.6.1.1.1).
_LETTERS = (("R", "L"), ("A", "P"), ("H", "F"))


@dataclass(frozen=True)
class DicomWriter:
    """Writes DICOM files into ``place``.

    ``key`` names the bundle: with a sample's name, channel and slice it makes the UIDs, so that the same bundle written
    again has the same, and another bundle none of them.
    """

    place: Path
    channels: tuple[str, ...]
    note: str
    grid: Grid
    generator: str
    key: str

    def add(self, unit: Unit, image: Pixels) -> tuple[str, ...]:
        """Write one image (C, H, W), uint8 or uint16; gives the names of its files."""
        if is_colour(self.channels, image.dtype):
            return (self._save(unit, image.transpose(1, 2, 0), COLOUR, 1, ""),)
        several = len(self.channels) > 1
        return tuple(
            self._save(unit, plane, channel, number, channel if several else "")
            for number, (channel, plane) in enumerate(zip(self.channels, image, strict=True), start=1)
        )

    def _save(self, unit: Unit, pixels: Pixels, channel: str, number: int, named: str) -> str:
        name = unit.file(named, "dcm")
        instance = self._uid(unit.sample, channel, unit.stem)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = instance
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        self._identify(dataset, unit, channel, number, instance)
        _put_pixels(dataset, pixels)
        if self.grid.known:
            column, row, _ = self.grid.spacing
            dataset.NominalScannedPixelSpacing = [f"{row:.10g}"[:_DECIMAL_STRING], f"{column:.10g}"[:_DECIMAL_STRING]]
        dataset.save_as(self.place / name, enforce_file_format=True)
        return name

    def _uid(self, *names: str) -> UID:
        return generate_uid(entropy_srcs=[self.key, *names])

    def _identify(self, dataset: Dataset, unit: Unit, channel: str, number: int, instance: UID) -> None:
        """All but the pixels. Empty are those that must be there and of which nothing is known (type 2)."""
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = instance
        dataset.SyntheticData = "YES"
        dataset.PatientName = f"SYNTHETIC^{unit.sample}"
        dataset.PatientID = unit.sample
        for keyword in (
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "ReferringPhysicianName",
        ):
            setattr(dataset, keyword, "")
        # Of kind 2C (if the body part is one of a pair): not known, so it has to be there, empty.
        dataset.AccessionNumber = dataset.Laterality = ""
        dataset.StudyID = unit.sample[:_SHORT_STRING]
        dataset.StudyInstanceUID = self._uid(unit.sample)
        dataset.StudyDescription = "SYNTHETIC"
        dataset.Modality = "OT"
        dataset.SeriesInstanceUID = self._uid(unit.sample, channel)
        dataset.SeriesNumber = number
        dataset.SeriesDescription = _plain(channel)
        dataset.Manufacturer = "unalike"
        dataset.ManufacturerModelName = _plain(self.generator)
        dataset.SoftwareVersions = _plain(folders.made_by())
        dataset.ConversionType = "SYN"
        dataset.InstanceNumber = max(unit.index, 0) + 1
        dataset.ImageType = ["DERIVED", "SECONDARY"]
        dataset.PatientOrientation = _letters(self.grid) if self.grid.known else ""
        dataset.DerivationDescription = (
            f"Drawn by {folders.made_by()} from a generator ({self.generator}); not taken of a patient."
        )
        dataset.ImageComments = self.note
        dataset.BurnedInAnnotation = "NO"
        dataset.LossyImageCompression = "00"

    def close(self) -> None:
        """Nothing waits."""


def key_of(digests: Sequence[str]) -> str:
    """Names a bundle by the digests of its images, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _plain(text: str) -> str:
    """Text as a value of kind LO may hold it: a backslash parts values."""
    return text.replace("\\", "/")[:_LONG_STRING]


def _letters(grid: Grid) -> list[str]:
    """Where columns and rows lead: ["L", "P"] for axial slices as radiologists see them."""
    directions = np.asarray(grid.orientation).T[:2]
    axes = np.abs(directions).argmax(axis=1).tolist()
    return [_LETTERS[axis][int(way[axis] < 0)] for axis, way in zip(axes, directions, strict=True)]


def _put_pixels(dataset: Dataset, pixels: Pixels) -> None:
    """One frame: (H, W) grey or (H, W, 3) colour by pixel, uint8 or uint16."""
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = int(pixels.shape[0]), int(pixels.shape[1])
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0
    content = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)).tobytes()
    # An element's length is even (PS3.5 7.1.1). Single bytes are OB, words OW (PS3.5 A.2).
    dataset.add_new("PixelData", "OB" if bits == 8 else "OW", content + b"\0" * (len(content) % 2))
