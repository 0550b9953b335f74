"""``unalike verify``: what a recipient can check of a bundle."""

from __future__ import annotations

from pathlib import Path

from unalike.cli.output import Json, print_json
from unalike.errors import RunError
from unalike.records import as_json


def verify(bundle: Path, *, json: Json = False) -> None:
    """Check a released bundle: that nothing was changed, and that its numbers follow from its images.

    Compares every file with its checksum, decodes every image, compares the formats with one another, and computes
    anew what can be computed without the patients. Needs no patient data, no graphics card and no torch.

    Parameters
    ----------
    bundle
        Bundle folder, as it was received.
    """
    from unalike.release.verify import verify_bundle

    found = verify_bundle(bundle)
    if json:
        print_json(as_json(found))
    else:
        print(f"{found.files} files, {found.images} images")
        for name, value in found.recomputed.items():
            print(f"computed anew: {name}: {value}")
        for problem in found.problems:
            print(f"  {problem}")
        if found.passed:
            print("the bundle is what was released")
    if not found.passed:
        raise RunError(f"{bundle} is not what was released: {found.problems[0]}")
