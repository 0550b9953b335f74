"""Reports: one self-contained HTML page, rebuilt from audit folders alone.

``read`` turns an audit folder into what a page shows, ``pictures`` makes picture data of pixels, ``figures``
draws distributions, ``page`` puts it together. Nothing here computes a finding; that is the audit's work.
"""

from __future__ import annotations

from unalike.report.page import write_report

__all__ = ["write_report"]
