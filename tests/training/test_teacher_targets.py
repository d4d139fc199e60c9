"""The averaged model and the objective that predicts its tokens."""

import copy
import math
from pathlib import Path

import pytest
import torch
from pretrain_runs import command, killed_at, same_results, step_of

import ssamba
from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.manifest import Clip, Source, read_sources
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import SkipList, scan_sources
from ssamba.models import masking
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.masking import MaskedForward
from ssamba.models.patches import gather_patches
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.models.registry import make_encoder
from ssamba.training.augment.transforms import change_speed, make_noise_bank, reverberate, sample_rooms
from ssamba.training.ema import EmaModel
from ssamba.training.features import batch_features
from ssamba.training.log import read_log
from ssamba.training.pretrain.data import PretrainData
from ssamba.training.pretrain.recipe import TEACHER_WEIGHTS, make_recipe
from ssamba.training.pretrain.run import build_task, pretrain
from ssamba.training.pretrain.task import PretrainInputs, PretrainTask
from ssamba.training.pretrain.teacher_targets import (
    TEACHER_LOSSES,
    LatentHeads,
    Predictions,
    Targets,
    active_losses,
    clip_contrast,
    clip_error,
    predict,
    teacher_targets,
    token_error,
)
from ssamba.training.seeds import torch_generator
from ssamba.utils.errors import ConfigError

CONFIG = Config(width=32, depth=4, frames=64, stride_frequency=16, stride_time=16)


@pytest.fixture(params=["ssamba", "ssast"])
def model(request: pytest.FixtureRequest) -> Encoder:
    return make_encoder(CONFIG.replace(encoder=request.param), heads=True)


def features(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 64, 128, generator=torch.Generator().manual_seed(5))


def test_averaged_weights_follow(model: Encoder) -> None:
    averaged = EmaModel(model, 0.9).train()
    assert not averaged.model.training
    start = copy.deepcopy(dict(model.named_parameters()))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    averaged.update(model, step=1)  # decay 2 / 11
    averaged.update(model, step=10_000)  # decay 0.9
    left = (2 / 11) * 0.9
    for name, value in averaged.model.named_parameters():
        torch.testing.assert_close(value, start[name] + (1 - left), atol=1e-5, rtol=1e-5)
        assert not value.requires_grad


def test_targets_are_standardised_and_without_gradient(model: Encoder) -> None:
    tokens, clip = teacher_targets(model.eval(), features(6))
    assert tokens.shape == (6, 32, 32)
    assert clip.shape == (6, 32)
    assert not tokens.requires_grad
    torch.testing.assert_close(tokens.mean(dim=1), torch.zeros(6, 32), atol=1e-4, rtol=0)
    torch.testing.assert_close(clip.mean(dim=0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(clip.var(dim=0, correction=0), torch.ones(32), atol=0.05, rtol=0)
    (last,) = model.encode_layers(features(6))[-1:]
    patches = last[:, model.prefix_tokens :]
    expected = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(teacher_targets(model, features(6), layers=1).tokens_CQd, expected, atol=1e-4, rtol=1e-4)


def test_losses_fall_to_zero_at_the_targets(model: Encoder) -> None:
    mask = masking.cluster_masks(3, CONFIG.grid, 20, torch.Generator().manual_seed(1))
    heads = LatentHeads(32, torch.Generator().manual_seed(2))
    heads.token, heads.clip = torch.nn.Sequential(), torch.nn.Sequential()  # nothing between tokens and targets
    tokens = teacher_targets(model.eval(), features()).tokens_CQd
    wanted = Targets(tokens, tokens.mean(dim=1))
    masked = gather_patches(tokens, mask)
    found = predict(heads, MaskedForward(tokens, masked), mask, wanted)
    assert (token_error(found), clip_error(found)) == (0, 0)
    masked[0, 0] += 1.0
    found = predict(heads, MaskedForward(tokens, masked), mask, wanted)
    assert clip_error(found) == 0
    torch.testing.assert_close(token_error(found), torch.tensor(1 / 60))
    assert clip_error(predict(heads, MaskedForward(tokens + 1.0, masked), mask, wanted)) == 1


@pytest.mark.parametrize("each", [1, 2])
def test_a_clips_target_is_its_next_view(each: int) -> None:
    # Six crops of two recordings, three views of each; the student says each view's own number.
    number = torch.arange(6.0)[:, None].expand(6, 32)
    tokens = number[:, None].expand(6, 4, 32)
    heads = LatentHeads(32, torch.Generator().manual_seed(2))
    heads.token, heads.clip = torch.nn.Sequential(), torch.nn.Sequential()
    mask = torch.zeros(6 * each, 1, dtype=torch.long)
    wanted_next = torch.tensor([1.0, 2.0, 0.0, 4.0, 5.0, 3.0])[:, None].expand(6, 32)
    said = wanted_next.repeat_interleave(each, dim=0)
    seen = MaskedForward(said[:, None].expand(-1, 4, -1), tokens[:, :1].repeat_interleave(each, dim=0))
    found = predict(heads, seen, mask, Targets(tokens, number), views=3)
    assert (token_error(found), clip_error(found)) == (0, 0)
    assert clip_error(predict(heads, seen, mask, Targets(tokens, number))) == 2  # (1 + 1 + 4) / 3


@pytest.mark.parametrize("views", [2, 3])
def test_contrast_is_infonce_against_other_recordings(views: int) -> None:
    draw = torch.Generator().manual_seed(3)
    said, wanted = torch.randn(6, 8, generator=draw), torch.randn(6, 8, generator=draw)

    def contrast(said: torch.Tensor, target: torch.Tensor, views: int) -> torch.Tensor:
        nothing = torch.zeros(6, 1, 8)
        return clip_contrast(Predictions(nothing, nothing, said, wanted, target, views))

    own = torch.arange(6)
    other = own - own % views + (own + 1) % views
    total = 0.0
    for i in range(6):
        similar = torch.nn.functional.cosine_similarity(said[i], wanted) / 0.1
        wrong = [similar[j].exp() for j in range(6) if j // views != i // views]
        total += float(-torch.log(similar[other[i]].exp() / (similar[other[i]].exp() + sum(wrong))))
    torch.testing.assert_close(contrast(said, other, views), torch.tensor(total / 6), rtol=1e-5, atol=1e-5)
    # Without other views the own crop is the right answer.
    alone = torch.nn.functional.cross_entropy(
        torch.nn.functional.cosine_similarity(said[:, None], wanted[None], dim=2) / 0.1, own
    )
    torch.testing.assert_close(contrast(said, own, 1), alone, rtol=1e-5, atol=1e-5)
    assert contrast(10 * wanted[other], other, views) < contrast(said, other, views)


LATENT = {"latent": 5.0, "latent_clip": 1.0, "ema": 0.9, "mix": 0.5, "gain_db": 6.0, "response_db": 3.0}


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(
            {"decoder_depth": 2, "masks_per_clip": 3, "drop_path": 0.2, "schedule": "cosine"}, marks=pytest.mark.slow
        ),
        {"contrast": 1.0, "views": 2, "view_shift": 0.1, "clean_targets": True},
        pytest.param({"speed": 1.3, "reverb": 0.5}, marks=pytest.mark.slow),
    ],
    ids=["plain", "decoder", "views", "speed"],
)
def test_killed_runs_end_as_an_unbroken_one(
    sounds: Path, tmp_path: Path, small: dict[str, object], extra: dict[str, object]
) -> None:
    small |= LATENT | {"short_clips": "repeat", "keep": "last"} | extra
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain([str(sounds)], whole, make_recipe(None, small), device="cpu")
    row = read_log(whole)[-1]
    assert 0 < float(row["latent"]) < 10
    assert 0 < float(row["latent_clip"]) < 10
    killed_at(command(sounds, broken, small), "state", 10)
    assert step_of(broken) == 10
    pretrain([str(sounds)], broken, make_recipe(None, small), device="cpu")
    same_results(whole, broken)
    kept = ssamba.load(whole, heads=True).state_dict()
    state = load_tensors(whole / "state.safetensors")
    for key, value in kept.items():
        torch.testing.assert_close(value, state[f"beside.averaged.model.{key}"], rtol=0, atol=0)
    assert any(not torch.equal(value, state[f"model.{key}"]) for key, value in kept.items())


@pytest.mark.parametrize("decoder_depth", [0, 2])
def test_several_masks_for_a_clip_are_as_many_passes(model: Encoder, decoder_depth: int) -> None:
    model = make_encoder(model.config.replace(decoder_depth=decoder_depth), heads=True).eval()
    x, draw = features(), torch.Generator().manual_seed(7)
    masks = [masking.cluster_masks(3, CONFIG.grid, 20, draw) for _ in range(2)]

    def losses(each: int, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        values = {"latent": 0.5, "latent_clip": 2.0, "contrast": 0.7, "views": 3, "batch": 6, "frames": 64, "mask": 20}
        recipe = make_recipe(None, values | {"ema": 0.9, "masks_per_clip": each})
        plan = PretrainPlan([Source("none", (Clip("none.wav", stated_seconds=1.0),))], 6)
        task = PretrainTask(recipe, model, plan, SkipList())
        assert task.metrics == ("loss", "nce", "accuracy", "mse", "latent", "latent_clip", "contrast")
        return task.losses(PretrainInputs(x, mask))

    together = torch.stack(masks, dim=1).flatten(0, 1)  # those of a clip follow one another
    found = losses(2, together)
    parts = [losses(1, mask) for mask in masks]
    for name, value in found.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-5, atol=1e-6)


def first_step(sounds: Path, values: dict[str, object]) -> tuple[PretrainTask, PretrainInputs]:
    """A run, and what its losses take first."""
    recipe = make_recipe(None, values)
    sources = scan_sources(read_sources([str(sounds)]))
    plan = PretrainPlan(sources, recipe.batch, 0, PUBLISHED.seconds_of_frames(recipe.frames), speed=recipe.speed)
    data = PretrainData(sources, sources[0].clips[:2], plan, SkipList())
    task = build_task(recipe, data, make_encoder(recipe.config(), heads=True))
    return task, task.inputs(0, next(iter(task.batches(0))))


def test_additional_losses_and_their_weights() -> None:
    assert tuple(loss.name for loss in TEACHER_LOSSES) == TEACHER_WEIGHTS
    assert not active_losses(make_recipe())
    # A log with one of the older two has columns for both.
    assert [loss.name for loss in active_losses(make_recipe(None, {"latent": 1.0, "ema": 0.9}))] == [
        "latent",
        "latent_clip",
    ]
    assert len(active_losses(make_recipe(None, {"contrast": 1.0, "ema": 0.9}))) == 3


@pytest.mark.parametrize("short_clips", ["zeros", "repeat"])
def test_speed_and_rooms_change_the_crops(sounds: Path, small: dict[str, object], short_clips: str) -> None:
    values = small | {"short_clips": short_clips, "speed": 1.5, "reverb": 0.8}
    task, inputs = first_step(sounds, values)
    batch = next(iter(task.batches(0)))
    samples = round(PUBLISHED.seconds_of_frames(task.recipe.frames) * SAMPLE_RATE)
    assert batch.waveforms.shape[1] == 1.5 * samples + 1
    speed = torch.from_numpy(task.plan.speeds(0))
    assert len(set(speed.tolist())) == task.recipe.batch
    waveforms, lengths = change_speed(batch.waveforms, batch.lengths, speed, samples)
    assert (lengths == samples).all() or short_clips == "zeros"  # some sounds are shorter than a slow crop
    assert (lengths == samples).any()
    noises = make_noise_bank(torch_generator(0, "rooms' noises"), SAMPLE_RATE)
    rooms = sample_rooms(task.recipe.batch, 0.8, SAMPLE_RATE, torch_generator(0, "rooms", 0))
    waveforms, lengths = reverberate(waveforms, lengths, rooms, noises)
    wanted = batch_features(waveforms, lengths, task.model.config)
    torch.testing.assert_close(inputs.features, wanted, rtol=0, atol=0)
    # Held-out clips are shown as they were recorded, and only so much of them as the model reads.
    plain, _ = first_step(sounds, small | {"short_clips": short_clips})
    assert task.validation is not None
    assert plain.validation is not None
    torch.testing.assert_close(task.validation.features, plain.validation.features, rtol=0, atol=0)


def test_clean_targets_are_those_of_clips_without_augmentation(sounds: Path, small: dict[str, object]) -> None:
    # The crops of one step, as the averaged model hears them, do not depend on what the student hears.
    def step(extra: dict[str, object]) -> PretrainInputs:
        return first_step(sounds, small | LATENT | {"short_clips": "repeat", "speed": 1.2} | extra)[1]

    loud = step({"clean_targets": True, "reverb": 1.0})
    plain = step({"mix": 0.0, "gain_db": 0.0, "response_db": 0.0})
    assert loud.clean_features is not None
    assert plain.clean_features is None
    assert (loud.features - plain.features).abs().mean() > 0.05
    torch.testing.assert_close(loud.clean_features, plain.features, rtol=0, atol=0)


@pytest.mark.slow
def test_views_are_told_apart_from_other_recordings(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 240, "batch": 8, "lr": 3e-3, "save_minutes": 1.0, "validate_every": 120}
    small |= {"contrast": 1.0, "views": 2, "view_shift": 0.2, "ema": 0.99}
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    values = [float(row["contrast"]) for row in read_log(tmp_path)]
    chance = math.log(7)
    assert sum(values[-10:]) / 10 < 0.8 * chance
    assert all(map(math.isfinite, values))


@pytest.mark.slow
def test_predicting_tokens_is_learnt(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 120, "batch": 8, "lr": 3e-3, "save_minutes": 1.0, "validate_every": 60, "latent": 5.0}
    pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"ema": 0.99}), device="cpu")
    values = [float(row["latent"]) for row in read_log(tmp_path)]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent": 1.0}, "needs an averaged model"),
        ({"ema": 1.0}, "ema: 1.0"),
        ({"mix": 1.5, "ema": 0.9}, "mix: 1.5"),
        ({"contrast": 1.0}, "needs an averaged model"),
        ({"contrast": 1.0, "ema": 0.9, "batch": 1}, "contrast: a batch of 1 has no other clips"),
        ({"views": 2, "ema": 0.9}, "views: 2 are for --latent-clip or --contrast"),
        ({"views": 3, "latent_clip": 1.0, "ema": 0.9, "batch": 8}, "batch: 8 clips are no multiple of 3 views"),
        ({"views": 0}, "views: 0"),
        ({"clean_targets": True}, "clean_targets: nothing is predicted"),
        ({"masks_per_clip": 0}, "masks_per_clip: 0"),
        ({"decoder_depth": 1}, "decoder_depth is 1: blocks come in pairs"),
        ({"response_db": -1.0}, "response_db: -1.0"),
        ({"speed": 0.8}, r"speed: 0\.8, give a factor from 1 \(as recorded\) to 4"),
        ({"speed": 5.0}, r"speed: 5\.0, give a factor"),
        ({"reverb": 1.5}, r"reverb: 1\.5, give a share"),
    ],
)
def test_values_that_make_no_run(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_recipe(None, values)
