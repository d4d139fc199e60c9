"""Kinds of encoder by name: the only place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

from torch import Generator

from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.ssamba import SSAMBA
from ssamba.models.ssast import SSAST

Kind = TypeVar("Kind", bound=Encoder)
KINDS: dict[str, type[Encoder]] = {"ssamba": SSAMBA, "ssast": SSAST}


def make_as(
    kinds: Mapping[str, type[Kind]],
    config: Config,
    heads: bool = False,
    classification: Classification | None = None,
    generator: Generator | None = None,
) -> Kind:
    """A new encoder, with random weights, of the class that ``kinds`` has for ``config.encoder``."""
    return kinds[config.encoder](config, heads, classification, generator)


make_encoder = partial(make_as, KINDS)
"""``make_as`` for the networks alone."""
