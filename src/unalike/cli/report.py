"""``unalike report``: one self-contained page from audit folders."""

from __future__ import annotations

from pathlib import Path

from unalike.cli.output import Json, print_json


def report(
    *audits: Path,
    out: Path | None = None,
    title: str | None = None,
    shareable: bool = False,
    json: Json = False,
) -> None:
    """Write the report of one audit, or one page that compares several.

    Parameters
    ----------
    audits
        Audit folders.
    out
        Page to write; default report.html in the audit folder (needed for several audits).
    title
        Heading of the page.
    shareable
        Leave out every picture and pseudonym of real patients.
    """
    from unalike.errors import SettingsError
    from unalike.report import write_report

    if not audits:
        raise SettingsError("give at least one audit folder.")
    page = write_report(audits[0] if len(audits) == 1 else audits, out=out, title=title, shareable=shareable)
    if json:
        print_json({"report": page})
    else:
        print(page)
