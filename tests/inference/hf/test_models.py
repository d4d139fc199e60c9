"""Models for transformers give what ssamba's give: bits, padding, windows, precision, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import CLASSES, shaken

import ssamba
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.load import locate
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError

CLOSE = 1e-5


def auto(folder: Path, kind: str = "AutoModel", **settings: Any) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, **settings)


@pytest.fixture(params=["folder", "ssast_folder"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def features(reference: Any, wave: np.ndarray) -> torch.Tensor:
    return ssamba.features(wave, mean=reference.config.mean, std=reference.config.std)


@torch.no_grad()
def test_tokens_equal_encode_bit_for_bit(hf: Any, either: Path, waves: list[np.ndarray]) -> None:
    reference, model = ssamba.load(either, "cpu"), auto(either)
    assert isinstance(model, hf.SsambaModel)
    for wave in waves[:3]:  # shorter than the grid, of its length, with columns that are not full
        x = features(reference, wave)
        assert torch.equal(model(x).last_hidden_state, reference.encode(x))
    x = features(reference, waves[3])
    assert torch.equal(model(x, whole=True).last_hidden_state, reference.encode(x))


@torch.no_grad()
def test_the_packaged_model(hf: Any, waves: list[np.ndarray]) -> None:
    reference, model = ssamba.load("tiny", "cpu"), auto(locate("tiny"))
    assert model.dtype == torch.float32  # the file holds fp16
    x = features(reference, waves[2])
    assert torch.equal(model(x).last_hidden_state, reference.encode(x))
    extractor = auto(locate("tiny"), "AutoFeatureExtractor")
    out = model(**extractor(waves, return_tensors="pt"))
    for pooled, wave in zip(out.pooler_output, waves, strict=True):
        assert (pooled - reference.embed(wave).clip[0]).abs().max() < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
def test_a_padded_batch_gives_each_clip_what_it_gets_alone(
    hf: Any, either: Path, waves: list[np.ndarray], whole: bool
) -> None:
    reference, model = ssamba.load(either, "cpu"), auto(either)
    extractor = auto(either, "AutoFeatureExtractor")
    batch = extractor(waves, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() != [batch["attention_mask"].shape[1]] * 4
    garbage = batch["input_values"].masked_fill(batch["attention_mask"][..., None] == 0, 1e3)
    out = model(garbage, batch["attention_mask"], whole=whole)
    for i, wave in enumerate(waves):
        alone = model(**extractor(wave, return_tensors="pt"), whole=whole)
        tokens = out.last_hidden_state[i][out.token_mask[i]]
        assert (tokens - alone.last_hidden_state[0]).abs().max() < CLOSE
        assert not out.last_hidden_state[i][~out.token_mask[i]].any()
        embedded = reference.embed(wave, whole=whole)
        assert (out.pooler_output[i] - embedded.clip[0]).abs().max() < CLOSE
        assert (tokens[reference.prefix_tokens :] - embedded.patches[0].flatten(0, 1)).abs().max() < CLOSE


@torch.no_grad()
def test_windows_of_overlapping_patches(hf: Any, tmp_path: Path, waves: list[np.ndarray]) -> None:
    config = Config(width=16, depth=2, frames=100, state_size=4, stride_time=10, stride_frequency=10)
    save_model(tmp_path / "m", shaken(make_encoder(config)))
    reference, model = ssamba.load(tmp_path / "m", "cpu"), auto(tmp_path / "m")
    out = model(**auto(tmp_path / "m", "AutoFeatureExtractor")(waves, return_tensors="pt"))
    for pooled, wave in zip(out.pooler_output, waves, strict=True):
        assert (pooled - reference.embed(wave).clip[0]).abs().max() < CLOSE


@torch.no_grad()
def test_hidden_states(hf: Any, either: Path, waves: list[np.ndarray]) -> None:
    reference, model = ssamba.load(either, "cpu"), auto(either)
    x = features(reference, waves[2])
    out = model(x, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[0], reference.embed_patches(x))
    for found, expected in zip(out.hidden_states[1:], reference.encode_layers(x), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert model(x).hidden_states is None
    assert [t.shape for t in model(x, return_dict=False)] == [out[0].shape, out[1].shape, out.token_mask.shape]
    batch = auto(either, "AutoFeatureExtractor")(waves, return_tensors="pt")
    states = model(**batch, output_hidden_states=True).hidden_states
    assert {s.shape for s in states} == {states[0].shape}


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForAudioClassification", "AutoModelForPreTraining"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(
    hf: Any, either: Path, waves: list[np.ndarray], kind: str, reentrant: bool
) -> None:
    x = auto(either, "AutoFeatureExtractor")(waves[:2], return_tensors="pt")
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = auto(either, kind, drop_path=0.5).train()
        calls = count_calls(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        torch.manual_seed(1)
        out = model(**x)
        (out[0].float().square().sum() if kind != "AutoModelForPreTraining" else out.loss).backward()
        gradients = {k: p.grad for k, p in model.named_parameters()}
        found.append((gradients, calls[0]))
    assert found[1][1] == 2 * found[0][1]  # each step of the chain ran again
    for name, plain in found[0][0].items():
        again = found[1][0][name]
        assert (plain is None) == (again is None)
        if plain is not None and not reentrant:
            assert torch.equal(plain, again), name
        elif plain is not None:  # where a parameter acts more than once, that form adds up in another order
            assert (plain - again).norm() <= 1e-6 * plain.norm(), name


def count_calls(model: Any) -> list[int]:
    """How often a step of the chain runs, counted at its input product or its first norm."""
    calls, chain = [0], getattr(model.encoder, model.encoder.chain)
    for step in chain:
        name = "_folded_input" if hasattr(step, "_folded_input") else None
        if name is None:
            step.norm1.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
            continue
        inner = getattr(step, name)
        object.__setattr__(step, name, lambda inner=inner: (calls.__setitem__(0, calls[0] + 1), inner())[1])
    return calls


def test_precision(hf: Any, folder: Path, waves: list[np.ndarray], tmp_path: Path) -> None:
    convert(folder, tmp_path / "half", half=True)
    half = auto(tmp_path / "half")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.encoder.positions, auto(folder).encoder.positions.half().float())
    assert auto(tmp_path / "half", dtype=torch.float16).dtype == torch.float16
    bf16, fp32 = auto(folder, dtype=torch.bfloat16), auto(folder)
    assert bf16.dtype == torch.bfloat16
    x = auto(folder, "AutoFeatureExtractor")(waves, return_tensors="pt")
    with torch.no_grad():
        found, expected = bf16(**x).pooler_output, fp32(**x).pooler_output
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.02
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = fp32(**x).pooler_output
    assert (mixed.float() - expected).norm() / expected.norm() < 0.02


def test_stochastic_depth_acts_in_training_alone(hf: Any, folder: Path, waves: list[np.ndarray]) -> None:
    x = auto(folder, "AutoFeatureExtractor")(waves[:1], return_tensors="pt")
    model = auto(folder, drop_path=0.9)
    with torch.no_grad():
        still = model(**x)[0]
        assert torch.equal(still, auto(folder)(**x)[0])
        torch.manual_seed(0)
        first, second = model.train()(**x)[0], model(**x)[0]
        torch.manual_seed(0)
        assert torch.equal(first, model(**x)[0])
    assert not torch.equal(first, second)


def test_a_fresh_classifier_is_finite_and_leaves_the_rest(hf: Any, either: Path, waves: list[np.ndarray]) -> None:
    x = auto(either, "AutoFeatureExtractor")(waves, return_tensors="pt")
    loaded = ssamba.load(either, "cpu").state_dict()
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = auto(either, "AutoModelForAudioClassification", id2label=dict(enumerate(CLASSES)))
        assert model(**x).logits.isfinite().all()
        found = model.encoder.state_dict()
        assert all(torch.equal(found[k], v) for k, v in loaded.items())
        new = {f"classifier.{m}.{p}" for m in ("norm", "linear") for p in ("weight", "bias")}
        assert set(found) - set(loaded) == new
        heads.append(found["classifier.linear.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0 < heads[0].std() < 1
    rows = auto(either, "AutoModelForAudioClassification", num_labels=4, pooling="rows")
    assert rows.encoder.classifier.linear.in_features == 2 * 8 * 16
    assert rows(**x).logits.isfinite().all()


def test_new_models(hf: Any, waves: list[np.ndarray]) -> None:
    config = hf.SsambaConfig(width=16, depth=2, frames=64, state_size=4)
    torch.manual_seed(0)
    first = hf.SsambaModel(config)
    second = hf.SsambaModel(config)
    assert not torch.equal(first.encoder.positions, second.encoder.positions)
    assert all(p.isfinite().all() for p in first.parameters())
    assert all(p.std() > 0 or name.endswith(("bias", "D_RKE", "bias_Kd", "weight_Kd", "norm.weight"))
               for name, p in first.named_parameters())  # fmt: skip
    assert first.config.dt_rank == 1
    assert hf.SsambaConfig(encoder="ssast").num_hidden_layers == 12
    assert hf.SsambaConfig().to_ssamba() == Config()


@torch.no_grad()
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "rows"])
def test_classification_equals_predict(
    hf: Any, tmp_path: Path, small_config: Config, waves: list[np.ndarray], multi: bool, pooling: str
) -> None:
    task = Classification(CLASSES, multi_label=multi, pooling=pooling)
    save_model(tmp_path / "m", shaken(make_encoder(small_config, classification=task)))
    reference, model = ssamba.load(tmp_path / "m", "cpu"), auto(tmp_path / "m", "AutoModelForAudioClassification")
    assert model.config.id2label == dict(enumerate(CLASSES))
    extractor = auto(tmp_path / "m", "AutoFeatureExtractor")
    logits = model(**extractor(waves, return_tensors="pt")).logits
    scores = logits.sigmoid() if multi else logits.softmax(-1)
    for found, wave, prediction in zip(scores, waves, reference.predict(waves), strict=True):
        assert (found - prediction.scores[0]).abs().max() < CLOSE
        alone = model(**extractor(wave, return_tensors="pt")).logits
        assert ((alone.sigmoid() if multi else alone.softmax(-1)) - found).abs().max() < CLOSE
    whole = model(**extractor(waves, return_tensors="pt"), whole=True).logits
    assert torch.allclose(whole[:2], logits[:2], atol=CLOSE)
    one_pass = reference.classify(extractor(waves[3], return_tensors="pt")["input_values"])
    assert (whole[3] - one_pass[0]).abs().max() < CLOSE
    assert (whole[3] - logits[3]).abs().max() > CLOSE


def test_losses(hf: Any, classifying: Path, waves: list[np.ndarray]) -> None:
    x = auto(classifying, "AutoFeatureExtractor")(waves, return_tensors="pt")
    model = auto(classifying, "AutoModelForAudioClassification")
    out = model(**x, labels=torch.tensor([0, 1, 2, 0]))
    expected = torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(out.loss, expected)
    multi = auto(classifying, "AutoModelForAudioClassification", problem_type="multi_label_classification")
    targets = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    out = multi(**x, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, targets.float())
    assert torch.equal(out.loss, expected)
    assert multi.config.task()["multi_label"]


def test_pretraining(hf: Any, folder: Path, waves: list[np.ndarray]) -> None:
    x = auto(folder, "AutoFeatureExtractor")(waves[:3], return_tensors="pt")
    model, reference = auto(folder, "AutoModelForPreTraining"), ssamba.load(folder, "cpu", heads=True)
    masked = torch.arange(20)[None].expand(1, -1)
    features_1FM = x["input_values"][2:]
    out, expected = model(features_1FM, masked_patches=masked), reference.losses(features_1FM, masked)
    for name in ("loss", "nce", "accuracy", "mse"):
        assert torch.equal(getattr(out, name), expected[name])
    assert torch.equal(model(**x).loss, model(**x).loss)  # in evaluation always the same masks
    model.train()
    assert not torch.equal(model(**x).loss, model(**x).loss)
    assert model(**x, objective="generative").nce is None
    with pytest.raises(ConfigError, match="masked_patches: give them for recordings of equal length"):
        model(**x, masked_patches=masked)
    with pytest.raises(ConfigError, match="objective 'draw': choose one of"):
        model(**x, objective="draw")


def test_bad_input_is_refused_in_one_line(hf: Any, folder: Path, classifying: Path, waves: list[np.ndarray]) -> None:
    model = auto(folder)
    x = auto(folder, "AutoFeatureExtractor")(waves[:2], return_tensors="pt")
    mask = x["attention_mask"]
    wrong = [
        ({"input_values": torch.zeros(2, 16000)}, "input_values of shape"),
        ({"input_values": None}, "input_values of shape None"),
        ({"input_values": torch.zeros(1, 8, 128)}, "8 frames: give at least 16"),
        ({"input_values": x["input_values"], "attention_mask": mask[:, 1:]}, "attention_mask of shape"),
        ({"input_values": x["input_values"], "attention_mask": mask.flip(1)}, "padding on the right"),
        ({"input_values": x["input_values"], "attention_mask": 0 * mask}, "padding on the right"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message) as caught:
            model(**given)
        assert "\n" not in str(caught.value)
    for given, message in [
        ({"width": 15, "encoder": "ssast", "attention_heads": 2}, "attention_heads is 2"),
        ({"depth": 3}, "depth is 3"),
        ({"encoder": "other"}, "encoder is 'other'"),
        ({"masked": 1.5}, "masked is 1.5"),
        ({"config": {"widht": 3}}, "unknown value 'widht'"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message) as error:
            hf.SsambaConfig(**given)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="problem_type is regression"):
        auto(classifying, "AutoModelForAudioClassification", problem_type="regression")(**x, labels=torch.zeros(2))


def test_a_model_that_answers_for_each_second(hf: Any, tmp_path: Path, small_config: Config) -> None:
    task = Classification(CLASSES, per_second=True)
    save_model(tmp_path / "m", make_encoder(small_config, classification=task))
    assert type(auto(tmp_path / "m")) is hf.SsambaModel
    with pytest.raises(ConfigError, match="answers for each second: use ssamba's predict"):
        auto(tmp_path / "m", "AutoModelForAudioClassification")
