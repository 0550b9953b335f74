"""Make a small text-to-image base of some classes of a cohort, to try textual inversion on without any download.

    unalike prepare PICTURES --recipe brain-tumor-mri --size 32 --out cohort
    python examples/tiny_base.py cohort --classes glioma_tumor meningioma_tumor "no_tumor=a healthy brain" --out base

It takes ten minutes to half an hour on one core. Leave out the class whose token you want to learn afterwards. A class
is told by its name, or by the caption behind "=". The folder ``base`` is a plain ``StableDiffusionPipeline`` of
diffusers. It has seen the cohort's train images, so it is as internal as they are.
"""

from __future__ import annotations

import argparse
import sys

from unalike.errors import UnalikeError
from unalike.generators.inversion.tiny import train_tiny_base


def main() -> int:
    """Parse, train, say where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cohort", help="cohort folder, square gray or colour images whose side is a multiple of 8")
    parser.add_argument("--classes", nargs="+", required=True, metavar="CLASS[=CAPTION]", help="classes to learn")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=4000, help="updates of text encoder and U-Net (default 4000)")
    parser.add_argument("--autoencoder-steps", type=int, default=1500, help="updates before that (default 1500)")
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args()
    captions = {}
    for entry in given.classes:
        label, _, caption = entry.partition("=")
        captions[label] = caption or label.replace("_", " ")
    try:
        out = train_tiny_base(
            given.cohort,
            captions=captions,
            out=given.out,
            steps=given.steps,
            autoencoder_steps=given.autoencoder_steps,
            seed=given.seed,
            device=given.device,
        )
    except UnalikeError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(out)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
