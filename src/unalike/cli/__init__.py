"""The command line: one short file per verb that parses, calls one public function, and prints.

Exit codes: 0 done; 1 failed on the way (what was finished stays); 2 bad input or usage; 3 the gate says no; 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Toml

from unalike import __version__
from unalike.cli.adopt import adopt
from unalike.cli.audit import audit
from unalike.cli.cohort import cohort
from unalike.cli.completion import completion
from unalike.cli.demo import demo
from unalike.cli.doctor import doctor
from unalike.cli.explain import explain
from unalike.cli.fidelity import fidelity
from unalike.cli.index import index
from unalike.cli.inspect import inspect
from unalike.cli.latent import latent
from unalike.cli.membership import membership
from unalike.cli.phantom import phantom
from unalike.cli.prepare import prepare
from unalike.cli.recipes import recipes
from unalike.cli.release import release
from unalike.cli.release_model import release_model
from unalike.cli.report import report
from unalike.cli.sample import sample
from unalike.cli.steps import steps
from unalike.cli.study import study
from unalike.cli.sweep import sweep
from unalike.cli.train import train
from unalike.cli.utility import utility
from unalike.cli.verify import verify
from unalike.errors import SettingsError, UnalikeError
from unalike.generators.diffusion.settings import PRESETS as DIFFUSION_PRESETS
from unalike.generators.stylegan.settings import PRESETS as STYLEGAN_PRESETS
from unalike.runs.families import KINDS

_COMMANDS = (
    demo,
    recipes,
    prepare,
    inspect,
    adopt,
    sample,
    steps,
    sweep,
    audit,
    membership,
    fidelity,
    utility,
    explain,
    release,
    verify,
    release_model,
    report,
    study,
    index,
    phantom,
    doctor,
    completion,
)
_EPILOGUE = (
    "With any command: --debug shows where an error came from; --config FILE takes settings from a TOML file "
    "with one table per command ([prepare], [train.diffusion], …), over which flags win."
)


def _apply_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A recipe's settings are defaults of ``prepare``, beneath the configuration file and flags."""
    if commands != ("prepare",):
        return
    given = [token.value for argument in arguments if "--recipe" in argument.names for token in argument.tokens]
    if given:
        from unalike.cohort.recipes import find_recipe

        settings = find_recipe(given[-1]).settings
        table = {
            name.replace("_", "-"): list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }
        Dict({"prepare": table}, source=f"recipe {given[-1]}")(app, commands, arguments)


def _apply_preset(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let the settings of ``train diffusion --preset NAME`` take the place of the defaults; flags win."""
    presets: Any = {"diffusion": DIFFUSION_PRESETS, "stylegan": STYLEGAN_PRESETS}.get(commands[-1])
    if presets is None or commands[0] != "train":
        return
    given = [argument for argument in arguments if argument.name == "--preset" and argument.tokens]
    name = given[0].tokens[0].value if given else ""
    if not name:
        return
    if name not in presets:
        raise SettingsError(f"--preset {name} is unknown. There are: {', '.join(presets)}.")
    chosen = presets[name]
    plain = asdict(type(chosen)())
    values = {key: value for key, value in asdict(chosen).items() if value != plain[key]}
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    Dict({"train": {commands[-1]: table}}, source=f"preset {name}")(app, commands, arguments)


def build_app(config: Path | None = None) -> App:
    """The command line as an object; ``config`` is a TOML file with settings."""
    app = App(
        name="unalike",
        version=__version__,
        help="Synthetic medical images that are like no patient: prepare, train, sample, audit, report.",
        help_epilogue=_EPILOGUE,
        config=(*(() if config is None else (Toml(config, must_exist=True),)), _apply_recipe, _apply_preset),
        suppress_keyboard_interrupt=False,
    )
    app.command(train)
    app.command(cohort)
    app.command(latent)
    for command in _COMMANDS:
        app.command(command)
    return app


def _split_global(arguments: Sequence[str]) -> tuple[list[str], bool, Path | None]:
    """Take --debug and --config FILE out, wherever they stand."""
    rest, debug, config = [], False, None
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--debug":
            debug = True
        elif argument == "--config":
            path = next(waiting, None)
            if path is None:
                raise SettingsError("--config needs the name of a TOML file.")
            config = Path(path)
        elif argument.startswith("--config="):
            config = Path(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if config is not None:
        _check_toml(config)
    return rest, debug, config


def _check_toml(config: Path) -> None:
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {config} does not exist or cannot be read. Check the path.") from error
    except ValueError as error:
        raise SettingsError(f"--config {config} is no TOML file ({error}). Mend it.") from error
    names = {function.__name__.replace("_", "-") for function in _COMMANDS} | {"train", "latent", "cohort"}
    unknown = [name for name, table in tables.items() if name not in names or not isinstance(table, dict)]
    trained = tables.get("train", {})
    unknown += [f"train.{name}" for name in trained if name not in KINDS] if isinstance(trained, dict) else []
    if unknown:
        raise SettingsError(f"--config {config}: {', '.join(unknown)} is no table of a command, such as [prepare].")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is one line on stderr."""
    debug = "--debug" in arguments
    try:
        rest, debug, config = _split_global(arguments)
        app = build_app(config)
        app(rest, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(str(error), 2, debug)
    except UnalikeError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt as interrupt:
        known = (
            "repeat the command: prepare, train, sample, steps, sweep, audit, fidelity, utility, explain, release, "
            "study and demo go on, the others begin again."
        )
        return _fail(f"interrupted; {str(interrupt) or known}", 130, debug)
    except BrokenPipeError:  # the reader (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error}. Check the disk and the permissions.", 1, debug)
    return 0


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # A file's name may hold what a terminal takes for a command.
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(message.split()))
    print(f"unalike: {plain}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``unalike`` program."""
    sys.exit(run(sys.argv[1:]))
