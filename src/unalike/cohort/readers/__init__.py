"""Readers: how files become images. Each plans first (which files make one item, whose they are) and loads later,
item by item, so that loading can run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from unalike.cohort.plan import Item, Loaded, NoSuchFiles, Plan
from unalike.cohort.readers import attributes
from unalike.cohort.recipes import Layout, Reader, find_recipe
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, SettingsError

Planner = Callable[[Path, Layout, PrepareSettings], Plan]
Loader = Callable[[Item, Plan, PrepareSettings], Loaded]

# Who loads what a layout's reader has planned: pictures of a table are loaded as pictures, a task's volumes as volumes.
_LOADERS: dict[Reader, Reader] = {"table": "pictures", "decathlon": "volumes"}


def plan_source(source: Path, settings: PrepareSettings) -> tuple[Plan, Reader]:
    """Plan by the first layout of the recipe that finds its files, and who is to load.

    Raises an `InputError` in the words of the only layout, or that none of them fits, and `SettingsError` for
    attributes that the layout has not.
    """
    recipe = find_recipe(settings.recipe)
    refusals = [attributes.refuse_reason(layout.reader, settings) for layout in recipe.layouts]
    if all(refusals):  # before anything is searched
        raise SettingsError(refusals[0])
    problems: list[InputError] = []
    for layout, refusal in zip(recipe.layouts, refusals, strict=True):
        try:
            plan: Plan = import_module(f"{__name__}.{layout.reader}").plan_items(source, layout, settings)
        except NoSuchFiles as error:
            problems.append(error)
            continue
        if refusal:
            raise SettingsError(refusal)
        return attributes.add_attributes(plan, layout.reader, settings), _LOADERS.get(layout.reader, layout.reader)
    expects = f" It expects {recipe.expects}." if recipe.reference else ""
    raise InputError(f"{problems[0]}{expects}")


def load_item(item: Item, *, plan: Plan, settings: PrepareSettings, reader: Reader) -> Loaded:
    """Load one item by its reader. Raises `PictureError` if it cannot be read or does not fit."""
    loaded: Loaded = import_module(f"{__name__}.{reader}").load_item(item, plan, settings)
    return loaded
