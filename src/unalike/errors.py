"""Every exception that unalike raises on purpose, in one tree.

* UnalikeError            anything we can explain in one line
  + InputError            what the user gave cannot be used (exit code 2)
    - FolderError         a folder is missing, unfinished, of another kind, or already there
    - PictureError        a picture or volume cannot be read, or does not fit the others
    - SettingsError       an option has a value that makes no sense
  + RunError              the work itself failed on the way; what was finished stays (exit code 1)
    - NonFiniteLossError  training diverged
  + HeldError             the gate says no: nothing leaves the house (exit code 3)

A message says what is wrong, names the file, and ends with the next step::

    try:
        unalike.audit_samples(synthetic="samples", against="cohort", out="audit")
    except unalike.UnalikeError as error:
        print(error)
"""


class UnalikeError(Exception):
    """Anything unalike can explain in one line."""

    exit_code = 1


class InputError(UnalikeError):
    """What the user gave cannot be used."""

    exit_code = 2


class FolderError(InputError):
    """A folder is missing, unfinished, of another kind or schema, or already there."""


class PictureError(InputError):
    """A picture or volume cannot be read, or does not fit the others."""


class SettingsError(InputError):
    """An option has a value that makes no sense."""


class RunError(UnalikeError):
    """The work itself failed on the way; what was finished stays on disk."""


class NonFiniteLossError(RunError):
    """Training diverged: the loss is infinite or not a number."""


class HeldError(UnalikeError):
    """The gate says no: what was to be released is held back."""

    exit_code = 3
