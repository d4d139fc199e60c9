"""The configuration for transformers, checked as strictly as ``ssamba.Config``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ssamba.inference.hf.folder import write_code
from ssamba.inference.hf.plain import configuration_ssamba as plain
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.config_digest import check_config_digest
from ssamba.models.pretrained.transformers_files import PREPROCESSOR_FILE, write_preprocessor
from ssamba.utils.atomic_write import make_folder
from ssamba.utils.errors import ConfigError


class SsambaConfig(plain.SsambaConfig):
    """``ssamba.Config`` and what transformers adds, as keyword arguments: ``SsambaConfig(width=192, frames=208)``.

    ``whole``: recordings longer than the grid go through in one pass instead of in windows. ``pooling`` is that of a
    new classifier. ``masked``: the share of the patches that pretraining hides. Raises ``ConfigError`` on values that
    no model can have.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        nested = kwargs.get("config")
        if nested is not None:
            Config.from_dict({**nested, "encoder": self.encoder}, "config.json")  # names an unknown value
        if self.classification is not None:
            Classification.from_dict(self.classification, "config.json")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Raises ``CheckpointError`` where the values do not fit their digest."""
        check_config_digest(config_dict, "config.json")
        return super().from_dict(config_dict, **kwargs)

    def complete(self) -> None:
        """Put the published values where the fields leave them open, and check all. Raises ``ConfigError``."""
        for name, value in self.to_ssamba().to_dict().items():
            setattr(self, name, value)
        if not 0 < self.masked < 1:
            raise ConfigError(f"masked is {self.masked}: give a share of the patches between 0 and 1")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; with ``auto_map`` the modules that it names come with it, and the front end's file."""
        # Models save their configuration between looking at the folder and uploading what is new in it.
        folder, mapped = make_folder(Path(save_directory)), getattr(self, "auto_map", None) is not None
        if mapped:
            write_code(folder)
        if not (folder / PREPROCESSOR_FILE).exists():
            write_preprocessor(folder, self.to_ssamba(), mapped)
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_ssamba(self) -> Config:
        """The dimensions as ``ssamba.Config``."""
        return Config.from_dict({**self.dimensions(), "encoder": self.encoder}, "SsambaConfig")
