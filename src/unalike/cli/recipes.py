"""``unalike recipes``: what prepare understands."""

from __future__ import annotations

import textwrap
from typing import Any

from unalike.cli.output import Json, print_json


def recipes(name: str | None = None, *, json: Json = False) -> None:
    """List the recipes of prepare, or explain one.

    Parameters
    ----------
    name
        A recipe, or a TOML file with one of your own.
    """
    from unalike.cohort.recipes import find_recipe, list_recipes

    if name is None:
        every = list_recipes()
        if json:
            print_json([_describe(recipe) for recipe in every])
            return
        width = max(len(recipe.name) for recipe in every)
        for recipe in every:
            print(f"{recipe.name:{width}}  {recipe.title}")
        print("\nunalike recipes NAME explains one; docs/recipes.md says how to write your own.")
        return
    recipe = find_recipe(name)
    if json:
        print_json(_describe(recipe))
        return
    print(f"{recipe.name}: {recipe.title}")
    for title, text in (("expects", recipe.expects), ("does", recipe.does), ("source", recipe.reference)):
        if text:
            print(textwrap.fill(text, 110, initial_indent=f"{title + ':':9}", subsequent_indent=" " * 9))
    for key, value in recipe.settings.items():
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        print(f"  --{key.replace('_', '-')} {shown}".replace(" True", ""))


def _describe(recipe: Any) -> dict[str, Any]:
    words = {key: getattr(recipe, key) for key in ("name", "title", "expects", "does", "reference")}
    return words | {"settings": dict(recipe.settings), "readers": [layout.reader for layout in recipe.layouts]}
