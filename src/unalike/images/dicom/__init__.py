"""DICOM files in any order as series; a series as one volume or as single frames.

Written from the DICOM standard (https://dicom.nema.org): PS3.3 C.7.6.2 (image plane: position, orientation, spacing),
C.7.6.3 (pixels), C.7.6.16 (functional groups of enhanced multi-frame images), C.11.1 (rescale) and C.11.2 (windows);
PS3.5 for the encoding, which pydicom reads.

Of a patient's identity nothing leaves but the fields of `Series`, which the caller keeps private.
"""

from unalike.images.dicom.headers import Series as Series
from unalike.images.dicom.pixels import DicomPixels as DicomPixels
from unalike.images.dicom.pixels import apply_window as apply_window
from unalike.images.dicom.pixels import read_series as read_series
from unalike.images.dicom.series import refuse_reason as refuse_reason
from unalike.images.dicom.series import scan_dicom as scan_dicom
