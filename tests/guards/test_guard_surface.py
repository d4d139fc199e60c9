"""Names, parameters, defaults and state dicts of the Python surface stay as they are."""

from __future__ import annotations

import guard_surface
import pytest
from guard_support import assert_same, read_golden

PARTS = ("dir", "__all__", "__version__", "public", "aliases", "ops", "backends", "sizes", "ssast")


@pytest.fixture(scope="module")
def surface() -> dict[str, object]:
    return guard_surface.surface()


@pytest.mark.parametrize("part", PARTS)
def test_the_public_surface(surface: dict[str, object], part: str) -> None:
    assert_same(surface[part], read_golden("surface")[part], f"surface/{part}")


def test_every_part_is_compared(surface: dict[str, object]) -> None:
    assert set(surface) == set(PARTS)


def test_backends_by_name() -> None:
    found = read_golden("surface")["backends"]
    assert all(found[name].startswith(("done", "known")) for name in ("auto", "reference", "cpu", "triton"))
    assert found["opencl"] == "unknown, refused"


def test_state_dicts() -> None:
    assert_same(guard_surface.state_dicts(), read_golden("state_dicts"), "state_dicts")
