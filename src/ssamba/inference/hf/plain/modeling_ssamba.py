"""SSAMBA and SSAST as models of transformers: embeddings and classification of log-mel features.

Padding would leak into a scan that reads in both directions, so clips of equal length run together and other lengths
run by themselves. Recordings longer than the model's grid are read in windows, as ssamba's ``embed`` and ``predict``
do, or with ``whole=True`` in one pass. This module needs no ssamba, whose kernels are many times faster.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

from .configuration_ssamba import MULTI, SsambaConfig, is_sigmoid
from .encoder_ssamba import Encoder

PREFIX = "encoder."
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 262144}
"""Tokens of windows that go through in one pass."""


@dataclass
class SsambaModelOutput(ModelOutput):
    """What ``SsambaModel`` gives.

    last_hidden_state (B, prefix + F*T, d): the tokens, patches frequency-major (index = f * T + t), T of the longest
    recording; 0 where a recording has no column. pooler_output (B, d): mean over a recording's patches. hidden_states:
    the tokens that enter the chain and those that leave each step. token_mask (B, prefix + F*T): where tokens are.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    token_mask: Tensor | None = None


class SsambaPreTrainedModel(PreTrainedModel):
    """What all models share: the encoder, its initial weights, and files that ssamba reads too."""

    config_class = SsambaConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["BlockPair", "Block"]  # noqa: RUF012 - as in the base class
    _keys_to_ignore_on_load_unexpected = [r"^(encoder\.)?(heads|decoder|extras|classifier)\."]  # noqa: RUF012

    def __init__(self, config: SsambaConfig, task: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        config.complete()
        self.encoder = self.make_encoder(config, task)
        self.post_init()

    def make_encoder(self, config: SsambaConfig, task: dict[str, Any] | None) -> Any:
        """The encoder, whose weights need not be drawn yet."""
        return Encoder(config, task)

    def fresh_encoder(self) -> Any:
        """An encoder of the same form on the CPU with new weights, drawn from torch's global generator."""
        with torch.device("cpu"):
            encoder = self.make_encoder(self.config, self.task)
            encoder.reset_parameters()
        return encoder

    @property
    def task(self) -> dict[str, Any] | None:
        """The classification that the encoder's classifier has, None without one."""
        return None

    def initialize_weights(self) -> None:
        """Draw the weights that no file gave."""
        missing = [p for p in self.parameters() if not getattr(p, "_is_hf_initialized", False)]
        if missing:
            object.__setattr__(self, "_fresh", self.fresh_encoder())
        try:
            super().initialize_weights()
        finally:
            self.__dict__.pop("_fresh", None)

    def _init_weights(self, module: nn.Module) -> None:
        """Called for each module with a parameter that no file gave: acts on the module's direct parameters."""
        values = dict(module.named_parameters(recurse=False))
        if not values:
            return
        path = next(name for name, other in self.encoder.named_modules() if other is module)
        for name, value in values.items():
            fresh = self._fresh.get_parameter(f"{path}.{name}" if path else name)
            init.copy_(value, fresh.data.to(value))

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads the patches."""
        layer: nn.Module = self.encoder.patch_embed
        return layer

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch's, and it takes the names of tensors as they are in files, too."""
        prefixed = {k if k.startswith(PREFIX) else PREFIX + k: v for k, v in state_dict.items()}
        return super().load_state_dict(prefixed, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers; the folder is a model directory of ssamba, too."""
        state = self.state_dict() if state_dict is None else state_dict
        self.config.heads = self.encoder.heads is not None
        self.config.classification = self.task
        plain = {k.removeprefix(PREFIX): v for k, v in state.items()}
        super().save_pretrained(save_directory, *args, state_dict=plain, **kwargs)

    def _encode(self, features: Tensor, layers: bool = False) -> list[Tensor]:
        """Tokens of clips of one length: a list of the last ones, or with ``layers`` of all steps."""
        encoder, keep = self.encoder, None
        features = features.to(self.device)
        if self.training and self.config.drop_path > 0:
            keep = encoder.draw_keep(len(features), self._generator())
            keep = None if keep is None else keep.to(features.device)
        if keep is None and not layers:
            return [encoder.encode(features)]
        tokens = encoder.embed_patches(features)
        steps: list[Tensor] = []
        last = encoder.encode_tokens(tokens, keep, steps if layers else None)
        return [tokens, *steps] if layers else [last]

    def _generator(self) -> Generator:
        """A generator of a pass's random numbers, seeded from torch's global one."""
        return Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))

    def _filled(self, input_values: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, list[int] | None]:
        """Checked features with silence beyond each recording's end, and the frames of each recording or None."""
        c = self.config
        if input_values is None or input_values.dim() != 3 or input_values.shape[2] != c.mel_bins:
            shape = None if input_values is None else tuple(input_values.shape)
            raise ValueError(f"input_values of shape {shape}: give (batch, frames, {c.mel_bins})")
        if attention_mask is None:
            if input_values.shape[1] < c.patch_time:
                raise ValueError(f"{input_values.shape[1]} frames: give at least {c.patch_time}, or an attention_mask")
            return input_values, None
        if attention_mask.shape != input_values.shape[:2]:
            raise ValueError(f"attention_mask of shape {(*attention_mask.shape,)}: give {(*input_values.shape[:2],)}")
        mask = attention_mask.to(input_values.device).bool()
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("attention_mask: give ones and then zeros in each row, with padding on the right")
        return input_values.masked_fill(~mask[..., None], c.silence), mask.sum(dim=1).tolist()

    def _padded(self, features: Tensor, frames: int) -> Tensor:
        """(B, n, mel_bins) cut or filled up with silence to so many frames."""
        return F.pad(features, (0, 0, 0, frames - features.shape[1]), value=self.config.silence)

    def _columns(self, frames: int) -> int:
        """Patch columns that cover so many frames, at least 1."""
        return -(-max(frames - self.config.patch_time, 0) // self.config.stride_time) + 1

    def _covered(self, n_columns: int) -> int:
        """Frames that so many columns read."""
        return (n_columns - 1) * self.config.stride_time + self.config.patch_time

    def _at_once(self) -> int:
        limit = TOKENS_AT_ONCE.get(self.device.type, TOKENS_AT_ONCE["cpu"])
        return max(1, limit // self.encoder.positions.shape[1])


class SsambaModel(SsambaPreTrainedModel):
    """Log-mel features -> tokens and their mean."""

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        whole: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Tokens of ``input_values`` (B, frames, mel_bins).

        Without ``attention_mask`` (B, frames) all frames count, and those beyond the last full patch column are left
        out. With it each recording gets what it gets alone, its last column filled up with silence. ``whole``: see
        ``SsambaConfig``. Returns ``SsambaModelOutput``.
        """
        config = self.config
        layers = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        whole = config.whole if whole is None else whole
        features, lengths = self._filled(input_values, attention_mask)
        if lengths is None:
            n = (features.shape[1] - config.patch_time) // config.stride_time + 1
            states, counts = self._read(features, n, layers, whole), [n] * len(features)
        else:
            counts = [self._columns(length) for length in lengths]
            states = self._read_each(features, counts, layers, whole)
        n = max(counts)
        there = torch.arange(n, device=states[-1].device) < torch.tensor(counts, device=states[-1].device)[:, None]
        patches = states[-1][:, self.encoder.prefix_tokens :].unflatten(1, (config.grid[0], n))
        if min(counts) == n:
            pooled = patches.mean(dim=(1, 2))
        else:  # what is not there is 0
            pooled = patches.sum(dim=(1, 2)) / (there.sum(dim=1, keepdim=True) * config.grid[0])
        front = there.new_ones(len(counts), self.encoder.prefix_tokens)
        mask = torch.cat([front, there[:, None].expand(-1, config.grid[0], -1).flatten(1)], dim=1)
        out = SsambaModelOutput(states[-1], pooled, tuple(states) if layers else None, mask)
        return out if (config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _read_each(self, features: Tensor, counts: list[int], layers: bool, whole: bool) -> list[Tensor]:
        """As ``_read``, for recordings whose numbers of columns are given; those of one length run together."""
        groups = {n: [i for i, count in enumerate(counts) if count == n] for n in sorted(set(counts))}
        parts = {n: self._read(self._padded(features[rows], self._covered(n)), n, layers, whole)
                 for n, rows in groups.items()}  # fmt: skip
        if len(groups) == 1:
            return parts[counts[0]]
        longest, rows = max(groups), self.config.grid[0]
        back = torch.tensor([i for group in groups.values() for i in group], device=features.device).argsort()
        front = self.encoder.prefix_tokens
        joined = []
        for states in zip(*parts.values(), strict=True):
            grids = [x[:, front:].unflatten(1, (rows, -1)) for x in states]
            grids = [F.pad(x, (0, 0, 0, longest - x.shape[2])).flatten(1, 2) for x in grids]
            whole_states = [torch.cat([x[:, :front], grid], dim=1) for x, grid in zip(states, grids, strict=True)]
            joined.append(torch.cat(whole_states)[back.to(states[0].device)])
        return joined

    def _read(self, features: Tensor, n: int, layers: bool, whole: bool) -> list[Tensor]:
        """Tokens of recordings of ``n`` columns: of one pass, or those of overlapping windows cross-faded."""
        config, window = self.config, self.config.grid[1]
        if n <= window or whole:
            return self._encode(features, layers)
        hop = max(window // 2, 1)
        starts = [*range(0, n - window, hop), n - window]
        length = self._covered(window)
        cut = torch.stack([features[:, s * config.stride_time :][:, :length] for s in starts], dim=1)
        passes = [self._encode(part, layers) for part in cut.flatten(0, 1).split(self._at_once())]
        ramp = torch.arange(1, window + 1, device=self.device)
        fade = torch.minimum(ramp, ramp.flip(0)).to(passes[0][0].dtype)
        front, states = self.encoder.prefix_tokens, []
        for parts in zip(*passes, strict=True):
            tokens = torch.cat(parts).unflatten(0, (-1, len(starts)))
            grids = tokens[:, :, front:].unflatten(2, (config.grid[0], window)) * fade[:, None]
            total, weight = grids.new_zeros(()), fade.new_zeros(n)
            for i, s in enumerate(starts):
                total = total + F.pad(grids[:, i], (0, 0, s, n - window - s))
                weight = weight + F.pad(fade, (s, n - window - s))
            grid = (total / weight[:, None]).flatten(1, 2)
            states.append(torch.cat([tokens[:, :, :front].mean(dim=1), grid], dim=1))
        return states


class SsambaForAudioClassification(SsambaPreTrainedModel):
    """Log-mel features -> class logits, as ssamba's ``predict``."""

    def __init__(self, config: SsambaConfig) -> None:
        task = config.task()
        if task.get("per_second"):
            raise self.error("this model answers for each second: use ssamba's predict, or SsambaModel for its tokens")
        super().__init__(config, task)
        config.classification = task

    error: type[Exception] = ValueError

    @property
    def task(self) -> dict[str, Any] | None:
        """The classification that the labels and the problem type say."""
        return self.config.task()

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        whole: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, classes) of ``input_values`` (B, frames, mel_bins), and the loss with ``labels``.

        A recording is filled up with silence to the model's grid, as in fine-tuning. A longer one is read in windows
        that overlap by half, and the logits are those of the windows' mean probabilities; with ``whole`` it is read in
        one pass. ``labels``: (B,) class numbers, or (B, classes) class vectors.
        """
        config = self.config
        layers = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        features, lengths = self._filled(input_values, attention_mask)
        lengths = [features.shape[1]] * len(features) if lengths is None else lengths
        longest = max(*lengths, config.frames)
        hidden = None
        if longest == config.frames:
            logits, hidden = self._classify(self._padded(features, config.frames), layers)
        elif layers:
            raise ValueError("hidden states of recordings longer than the grid: use SsambaModel")
        elif config.whole if whole is None else whole:
            counts = [self._columns(n) if n > config.frames else config.grid[1] for n in lengths]
            rows = [self._padded(x[None], self._covered(n)) for x, n in zip(features, counts, strict=True)]
            logits = torch.cat([self._classify(row)[0] for row in rows])
        else:
            logits = self._classify_windows(features, lengths)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        out = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)
        return out if (config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _classify(self, features: Tensor, layers: bool = False) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        states = self._encode(features, layers)
        n = (features.shape[1] - self.config.patch_time) // self.config.stride_time + 1
        logits = self.encoder.classifier(states[-1], self.encoder.prefix_tokens, n)
        return logits, tuple(states) if layers else None

    def _classify_windows(self, features: Tensor, lengths: list[int]) -> Tensor:
        """The logits of each recording's mean probabilities over its windows."""
        frames, hop = self.config.frames, max(1, self.config.frames // 2)
        starts = [[0] if n <= frames else [*range(0, n - frames, hop), n - frames] for n in lengths]
        cut = [
            self._padded(x[None, s : s + frames], frames)
            for x, each in zip(features, starts, strict=True)
            for s in each
        ]
        logits = torch.cat([self._classify(part)[0] for part in torch.cat(cut).split(self._at_once())])
        return torch.cat([self._mean(part) for part in logits.split([len(each) for each in starts])])

    def _mean(self, logits: Tensor) -> Tensor:
        """(windows, classes) -> (1, classes)."""
        if len(logits) == 1:
            return logits
        wide = logits.float()
        if is_sigmoid(self.config.task()):
            mean = F.logsigmoid(wide).logsumexp(dim=0, keepdim=True) - F.logsigmoid(-wide).logsumexp(
                dim=0, keepdim=True
            )
        else:
            mean = wide.log_softmax(dim=-1).logsumexp(dim=0, keepdim=True) - math.log(len(logits))
        return mean.to(logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind == "regression":
            raise self.error(
                "problem_type is regression: give single_label_classification or multi_label_classification"
            )
        if kind == MULTI:
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.cross_entropy(logits.float(), labels if labels.dim() == 1 else labels.float())
