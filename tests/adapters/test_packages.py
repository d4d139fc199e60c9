"""Which packages the adapters need, and what is said where one is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
try:
    importlib.import_module("ssamba.adapters.{module}")
except ImportError as error:
    print(error)
"""
OTHERS = ("sklearn", "mteb", "s3prl", "xares", "hearvalidator", "transformers", "torchaudio")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("sklearn", "ssamba.adapters.sklearn needs scikit-learn: pip install 'ssamba[sklearn]'"),
        ("mteb", "ssamba.adapters.mteb needs mteb: pip install mteb"),
        ("hear", ""),
        ("s3prl", ""),
        ("xares", ""),
    ],
)
def test_without_other_packages(module: str, said: str) -> None:
    code = BLOCKED.format(packages=OTHERS, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == said
