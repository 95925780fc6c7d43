"""Network-attached storage over plain HTTP: a Twisted daemon started by ``twistd httpnas``."""

from __future__ import annotations

__version__ = "0.1.0"
