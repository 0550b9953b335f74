"""unalike: synthetic medical images that are like no patient.

Everything a user needs is imported from here. Names are loaded on first use (PEP 562), so that ``import unalike``
is quick and the report never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unalike.vision.imports import prepare_import

__version__ = "0.1.0"

_HOMES = {
    "About": "unalike.release.run",
    "AuditResult": "unalike.audit.run",
    "AuditSettings": "unalike.audit.settings",
    "CopyIndex": "unalike.audit.index",
    "DemoSettings": "unalike.study.settings",
    "DiffusionSettings": "unalike.generators.diffusion.settings",
    "DrawSettings": "unalike.generators.settings",
    "Estimate": "unalike.records",
    "ExplainSettings": "unalike.explain.settings",
    "FidelityResult": "unalike.fidelity.result",
    "FidelitySettings": "unalike.fidelity.settings",
    "GaussianSettings": "unalike.generators.controls.gaussian",
    "GuardSettings": "unalike.runs.settings",
    "HeldError": "unalike.errors",
    "ImageFolder": "unalike.cohort.store",
    "InputError": "unalike.errors",
    "InversionSettings": "unalike.generators.inversion.settings",
    "MembershipSettings": "unalike.audit.membership_settings",
    "MemorizerSettings": "unalike.generators.controls.memorizer",
    "Override": "unalike.release.run",
    "PhantomSettings": "unalike.cohort.phantom",
    "PrepareSettings": "unalike.cohort.settings",
    "ReleasePolicy": "unalike.release.policy",
    "ReleaseResult": "unalike.release.run",
    "StyleganSettings": "unalike.generators.stylegan.settings",
    "TrackerSettings": "unalike.generators.trackers",
    "UnalikeError": "unalike.errors",
    "UtilitySettings": "unalike.utility.settings",
    "WatchSettings": "unalike.runs.settings",
    "adopt_model": "unalike.runs.adopt",
    "audit_membership": "unalike.audit.membership",
    "audit_samples": "unalike.audit.run",
    "compare_steps": "unalike.study.steps",
    "correlate": "unalike.similarity.correlation",
    "draw_evidence": "unalike.explain.evidence",
    "draw_samples": "unalike.runs.sample",
    "drop_subject": "unalike.cohort.removal",
    "examine_machine": "unalike.study.doctor",
    "explain_predictions": "unalike.explain.run",
    "find_leaks": "unalike.cohort.compare",
    "find_matches": "unalike.similarity.correlation",
    "inspect_folder": "unalike.report.inspect",
    "list_recipes": "unalike.cohort.recipes",
    "load_classifier": "unalike.utility.models",
    "load_generator": "unalike.generators.stylegan.model",
    "make_film": "unalike.runs.latent",
    "make_mix": "unalike.runs.latent",
    "make_phantom": "unalike.cohort.phantom",
    "measure_utility": "unalike.utility.run",
    "open_images": "unalike.cohort.store",
    "open_loss_model": "unalike.generators.losses",
    "prepare_cohort": "unalike.cohort.build",
    "project_folder": "unalike.runs.latent",
    "read_embedding": "unalike.generators.inversion.embedding",
    "read_fidelity": "unalike.fidelity.result",
    "read_policy": "unalike.release.policy",
    "recipe_settings": "unalike.cohort.recipes",
    "reject_copies": "unalike.audit.index",
    "release_model": "unalike.release.model",
    "release_samples": "unalike.release.run",
    "run_demo": "unalike.study.demo",
    "run_study": "unalike.study.run",
    "score_fidelity": "unalike.fidelity.score",
    "search_bundle": "unalike.release.leaks",
    "sweep_generator": "unalike.study.sweep",
    "train_generator": "unalike.runs.train",
    "verify_bundle": "unalike.release.verify",
    "write_report": "unalike.report",
}

__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from unalike.audit.index import CopyIndex as CopyIndex
    from unalike.audit.index import reject_copies as reject_copies
    from unalike.audit.membership import audit_membership as audit_membership
    from unalike.audit.membership_settings import MembershipSettings as MembershipSettings
    from unalike.audit.run import AuditResult as AuditResult
    from unalike.audit.run import audit_samples as audit_samples
    from unalike.audit.settings import AuditSettings as AuditSettings
    from unalike.cohort.build import prepare_cohort as prepare_cohort
    from unalike.cohort.compare import find_leaks as find_leaks
    from unalike.cohort.phantom import PhantomSettings as PhantomSettings
    from unalike.cohort.phantom import make_phantom as make_phantom
    from unalike.cohort.recipes import list_recipes as list_recipes
    from unalike.cohort.recipes import recipe_settings as recipe_settings
    from unalike.cohort.removal import drop_subject as drop_subject
    from unalike.cohort.settings import PrepareSettings as PrepareSettings
    from unalike.cohort.store import ImageFolder as ImageFolder
    from unalike.cohort.store import open_images as open_images
    from unalike.errors import HeldError as HeldError
    from unalike.errors import InputError as InputError
    from unalike.errors import UnalikeError as UnalikeError
    from unalike.explain.evidence import draw_evidence as draw_evidence
    from unalike.explain.run import explain_predictions as explain_predictions
    from unalike.explain.settings import ExplainSettings as ExplainSettings
    from unalike.fidelity.result import FidelityResult as FidelityResult
    from unalike.fidelity.result import read_fidelity as read_fidelity
    from unalike.fidelity.score import score_fidelity as score_fidelity
    from unalike.fidelity.settings import FidelitySettings as FidelitySettings
    from unalike.generators.controls.gaussian import GaussianSettings as GaussianSettings
    from unalike.generators.controls.memorizer import MemorizerSettings as MemorizerSettings
    from unalike.generators.diffusion.settings import DiffusionSettings as DiffusionSettings
    from unalike.generators.inversion.embedding import read_embedding as read_embedding
    from unalike.generators.inversion.settings import InversionSettings as InversionSettings
    from unalike.generators.losses import open_loss_model as open_loss_model
    from unalike.generators.settings import DrawSettings as DrawSettings
    from unalike.generators.stylegan.model import load_generator as load_generator
    from unalike.generators.stylegan.settings import StyleganSettings as StyleganSettings
    from unalike.generators.trackers import TrackerSettings as TrackerSettings
    from unalike.records import Estimate as Estimate
    from unalike.release.leaks import search_bundle as search_bundle
    from unalike.release.model import release_model as release_model
    from unalike.release.policy import ReleasePolicy as ReleasePolicy
    from unalike.release.policy import read_policy as read_policy
    from unalike.release.run import About as About
    from unalike.release.run import Override as Override
    from unalike.release.run import ReleaseResult as ReleaseResult
    from unalike.release.run import release_samples as release_samples
    from unalike.release.verify import verify_bundle as verify_bundle
    from unalike.report import write_report as write_report
    from unalike.report.inspect import inspect_folder as inspect_folder
    from unalike.runs.adopt import adopt_model as adopt_model
    from unalike.runs.latent import make_film as make_film
    from unalike.runs.latent import make_mix as make_mix
    from unalike.runs.latent import project_folder as project_folder
    from unalike.runs.sample import draw_samples as draw_samples
    from unalike.runs.settings import GuardSettings as GuardSettings
    from unalike.runs.settings import WatchSettings as WatchSettings
    from unalike.runs.train import train_generator as train_generator
    from unalike.similarity.correlation import correlate as correlate
    from unalike.similarity.correlation import find_matches as find_matches
    from unalike.study.demo import run_demo as run_demo
    from unalike.study.doctor import examine_machine as examine_machine
    from unalike.study.run import run_study as run_study
    from unalike.study.settings import DemoSettings as DemoSettings
    from unalike.study.steps import compare_steps as compare_steps
    from unalike.study.sweep import sweep_generator as sweep_generator
    from unalike.utility.models import load_classifier as load_classifier
    from unalike.utility.run import measure_utility as measure_utility
    from unalike.utility.settings import UtilitySettings as UtilitySettings


prepare_import()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unalike' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
