"""`release_model`: the weights themselves. A command of its own, because a model can hold what no sample shows.

Samples can be audited one by one; what weights hold cannot be listed. Akbar et al. (2025, sections 4.3 and 4.5) advise
to share synthetic images and not the models. So nothing here happens by the way: the papers' advice is said, the model
is asked who was in its training set (`audit.membership`), and the answer goes with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.audit.membership import LossModel, audit_membership, summary_of
from unalike.audit.membership_settings import MembershipSettings
from unalike.cohort.store import open_images
from unalike.errors import InputError, SettingsError
from unalike.release.checksums import write_checksums
from unalike.release.leaks import SearchResult, search_bundle
from unalike.release.run import BUNDLE, DECISION, INTERNAL, Override

ADVICE = (
    "Weights can hold training images that no sample drawn so far has shown. Akbar et al. (2025) advise to share "
    "synthetic images and to keep the model; a diffusion model trained on few patients hands back copies of them. "
    "De Wilde et al. (2023) share embeddings of a few hundred kilobytes, which hold less, and do not measure how much. "
    "A membership test that finds nothing is no proof: it knows one kind of attack, and its power is stated with it."
)

# What of a membership test goes with the model: nothing of single subjects.
_TOLD = ("decision", "headline", "warnings", "auc", "p_value", "least_auc", "true_positives", "counts")


@dataclass(frozen=True)
class ModelRelease:
    """What was decided about a model; the same stands in the folder's header. ``bundle`` is None when it is held."""

    path: Path
    bundle: Path | None
    decision: str
    reasons: tuple[str, ...]
    override: Override | None
    membership: Mapping[str, Any]


def release_model(
    *,
    run: str | Path,
    against: str | Path,
    out: str | Path,
    model: LossModel | None,
    settings: MembershipSettings | None = None,
    override: Override | None = None,
    seed: int = 0,
) -> ModelRelease:
    """Ask whether a run's model gives away who was in its training set; copy it to ``out/bundle`` if it does not.

    ``model`` is the run's loss, as `unalike.open_loss_model` gives it; None where a kind of run has none: held.
    ``against`` is the cohort it was trained on. ``out/internal/membership`` is internal, ``out/bundle`` is what may
    leave. A model that keeps training images as they are (the memorizer) is never released, by nobody's override.

    Raises an `InputError` if the folders do not fit each other.
    """
    run, out = Path(run), Path(out)
    header = folders.read_header(run, kind="run")
    cohort = open_images(against)
    if header.inputs.get("cohort") != cohort.digest:
        raise InputError(
            f"{run} was not trained on {against} (or it has changed since). Name the cohort it was trained on."
        )
    if folders.digest_tree(run / folders.MODEL) != header.content.get("model_digest"):
        raise InputError(f"{run / folders.MODEL} was changed since the training. Train again.")
    if override is not None and not override.reason.strip():
        raise SettingsError('--override needs --reason "…": it is written beside the model.')
    if header.content.get("holds_training_images"):
        raise InputError(
            f"{run}: a {header.content['generator']} keeps training images as they are. It is not released."
        )
    wanted = {"run": run.name, "settings": asdict(settings or MembershipSettings()), "override": _as_dict(override)}
    folders.begin_folder(out, kind="model-release", settings=wanted, resumable=True)
    found = _ask_membership(run, Path(against), out, model, settings, seed)
    reasons = _reasons(found)
    decision = "HELD" if reasons else "RELEASE"
    bundle, search = None, None
    if decision == "RELEASE" or override is not None:
        bundle, search = _write_bundle(run, cohort.path, out, header, decision, reasons, override, found)
        if search.leaks:
            shutil.rmtree(bundle)
            kinds = sorted({leak.what for leak in search.leaks})
            bundle, decision, reasons = (
                None,
                "HELD",
                (*reasons, f"the bundle holds what is a patient's: {', '.join(kinds)}"),
            )
    content = {
        "decision": decision,
        "reasons": list(reasons),
        "override": _as_dict(override) if reasons else None,
        "membership": found,
        "advice": ADVICE,
        "bundle_digest": None if bundle is None else folders.digest_file(bundle / "checksums.sha256"),
        "internal": True,
    }
    folders.write_json(out / DECISION, content)
    inputs = {"run": folders.digest_of(run, kind="run"), "cohort": cohort.digest}
    folders.finish_folder(out, kind="model-release", settings=wanted, seed=seed, inputs=inputs, content=content)
    return ModelRelease(out, bundle, decision, reasons, override, found)


def _as_dict(override: Override | None) -> dict[str, str] | None:
    return None if override is None else asdict(override)


def _ask_membership(
    run: Path, cohort: Path, out: Path, model: LossModel | None, settings: MembershipSettings | None, seed: int
) -> dict[str, Any]:
    if model is None:
        return {
            "decision": "cannot tell",
            "headline": "this kind of run has no loss that a membership test could ask",
            "auc": None,
        }
    place = out / INTERNAL / "membership"
    if folders.kind_of(place) == "membership":
        return dict(folders.read_header(place, kind="membership").content)
    return summary_of(audit_membership(run=run, model=model, against=cohort, out=place, settings=settings, seed=seed))


def _reasons(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the model is held; none where membership was looked for, with power, and does not show."""
    if found["decision"] == "membership does not show":
        return ()
    return (f"membership inference: {found['decision']}. {found['headline']}",)


def _write_bundle(
    run: Path,
    cohort: Path,
    out: Path,
    header: folders.Header,
    decision: str,
    reasons: tuple[str, ...],
    override: Override | None,
    found: Mapping[str, Any],
) -> tuple[Path, SearchResult]:
    bundle = out / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    shutil.copytree(run / folders.MODEL, bundle / folders.MODEL)
    content = header.content
    card = {
        "title": f"{content['generator']} model",
        "made_by": folders.made_by(),
        "created": datetime.now(UTC).date().isoformat(),
        "decision": decision,
        "reasons": list(reasons),
        "override": _as_dict(override) if reasons else None,
        "generator": content["generator"],
        "settings": {name: value for name, value in header.settings.items() if not isinstance(value, dict)},
        "images": {name: content[name] for name in ("channels", "height", "width", "dtype")},
        "train_images": content["train_images"],
        "parameters": content.get("parameters"),
        "membership": {name: found.get(name) for name in _TOLD},
        "advice": ADVICE,
    }  # fmt: skip
    folders.write_json(bundle / "card.json", card)
    (bundle / "README.md").write_text(_readme(card), encoding="utf-8")
    write_checksums(bundle)
    return bundle, search_bundle(bundle, cohort)


def _readme(card: Mapping[str, Any]) -> str:
    """The card for people."""
    found, images = card["membership"], card["images"]
    auc = found.get("auc") or {}
    shown = f"AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})." if auc.get("value") is not None else ""
    lines = [
        f"# {card['title']}",
        "",
        f"{card['made_by']}, {card['created']}. Decision: **{card['decision']}**.",
        *(f"- {reason}" for reason in card["reasons"]),
        "",
    ]
    if card["override"]:
        by = f" ({card['override']['by']})" if card["override"]["by"] else ""
        lines += [f"**RELEASED BY OVERRIDE{by}: {card['override']['reason']}**", ""]
    lines += [
        f"A {card['generator']} trained on {card['train_images']:,} images of {images['width']} × {images['height']} "
        f"pixels, channels {', '.join(images['channels'])} ({images['dtype']}).",
        "",
        f"Membership inference: {found['headline']} {shown}",
        "",
        "## Before you use or pass on this model",
        "",
        card["advice"],
        "",
        "Not for diagnosis. What it draws has to be audited against the patients by who has them: nobody else can.",
        "",
        "Check the files: `sha256sum -c checksums.sha256`.",
        "",
    ]
    return "\n".join(lines)
