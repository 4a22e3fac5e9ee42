"""A release is published only where its tag, version and changelog agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import ghn_fast

SCRIPT = Path(__file__).parents[1] / ".ci" / "release_notes.py"

if not SCRIPT.exists():
    pytest.skip("source distributions come without .ci", allow_module_level=True)

CHANGELOG = """# Changelog

## 1.3.0 (unreleased)

- Newer.

## 1.2.0 (2026-11-27)

- This.

## 1.1.0 (2026-01-01)

- Older.
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of("release_notes.py")


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), SCRIPT.parent / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_of_a_version(script: ModuleType) -> None:
    assert script.notes("v1.2.0", '__version__ = "1.2.0"', CHANGELOG) == "- This."


@pytest.mark.parametrize(
    ("tag", "version", "problem"),
    [
        ("v1.2.0", "1.2.1", r"tag is v1\.2\.0.*has 1\.2\.1"),
        ("v1.3.0", "1.3.0", "no heading"),  # it says "unreleased"
        ("v1.4.0", "1.4.0", "no heading"),
    ],
)
def test_what_does_not_agree(script: ModuleType, tag: str, version: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        script.notes(tag, f'__version__ = "{version}"', CHANGELOG)


def test_citation_is_of_this_version() -> None:
    citation = (SCRIPT.parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ghn_fast.__version__}\n" in citation


def test_links_of_the_readme_lead_to_the_repository() -> None:
    links = module_of("absolute_links.py")
    here = "[a](CONTRIBUTING.md#test) ![b](docs/figures/predict.svg) [c](docs)"
    there = links.absolute(here, "https://host/o/n", "v1")
    assert there == (
        "[a](https://host/o/n/blob/v1/CONTRIBUTING.md#test) "
        "![b](https://host/o/n/raw/v1/docs/figures/predict.svg) "
        "[c](https://host/o/n/blob/v1/docs)"
    )
    elsewhere = "[d](https://host/README.md) [e](#use) [f](no/such/file) model[0](images)"
    assert links.absolute(elsewhere, "https://host/o/n", "v1") == elsewhere
    readme = (SCRIPT.parents[1] / "README.md").read_text(encoding="utf-8")
    made = links.absolute(readme, "https://host/o/n", "v1")
    assert links.absolute(made, "https://host/o/n", "v1") == made
    assert "](docs/" not in made
