"""Kinds of encoder by name: the only place that knows them all."""

from __future__ import annotations

from typing import TypeVar

from torch import Generator

from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.ssamba import SSAMBA
from ssamba.models.ssast import SSAST

Kind = TypeVar("Kind", bound=Encoder)
KINDS: dict[str, type[Encoder]] = {"ssamba": SSAMBA, "ssast": SSAST}


def make_encoder(
    config: Config,
    heads: bool = False,
    classification: Classification | None = None,
    generator: Generator | None = None,
) -> Encoder:
    """A new encoder of the kind that ``config.encoder`` names."""
    return KINDS[config.encoder](config, heads, classification, generator)
