"""``unalike verify``: what a recipient can check of a bundle."""

from __future__ import annotations

from pathlib import Path

from unalike.cli.output import Json, print_json
from unalike.errors import RunError
from unalike.records import as_json

MOST = 20  # problems printed


def verify(bundle: Path, *, json: Json = False) -> None:
    """Check a released bundle: that nothing was changed, and that its numbers follow from its images.

    Compares every file with its checksum, decodes every image, compares the formats with one another, and computes
    anew what can be computed without the patients. Needs no patient data, no graphics card and no torch. Who made the
    bundle it cannot tell: compare the SHA-256 of checksums.sha256 with the one that its maker tells you.

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
            told = {side: "nothing" if number is None else f"{number:.4g}" for side, number in value.items()}
            print(f"computed anew: {name} {told['found']}, the card says {told['card']}")
        if not found.recomputed:
            print("no number could be computed anew: the card holds no reference")
        for problem in found.problems[:MOST]:
            print(f"  {problem}")
        if len(found.problems) > MOST:
            print(f"  … and {len(found.problems) - MOST} more; --json lists them")
        if found.passed:
            print("every file, image and number agrees with the bundle's own checksums and card")
    if not found.passed:
        raise RunError(f"{bundle} was changed or damaged: {found.problems[0]}. Ask who released it for a new copy.")
