"""unalike: synthetic medical images that are like no patient.

Everything a user needs is imported from here; it is loaded on first use, so that ``import unalike`` is quick
and the report never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
