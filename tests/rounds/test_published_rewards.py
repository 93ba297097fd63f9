"""PickScore, HPSv2 and ImageReward with small random weights, against other libraries."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
)

from dfusion.errors import UserError
from dfusion.rewards import hpsv2, image_reward, published
from dfusion.rewards.registry import load_reward
from dfusion.settings.schema import Eval
from tests.conftest import make_tokenizer

CPU = torch.device("cpu")


def test_pickscore_pairs_each_image_with_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokens")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 8}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config={
            **tower,
            **heads,
            **ids,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
        },
        vision_config={**tower, **heads, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(CLIPImageProcessor(**size), tokenizer)
    model.save_pretrained(tmp_path / "pick")
    processor.save_pretrained(tmp_path / "pick")
    monkeypatch.setenv("PICKSCORE", str(tmp_path / "pick"))
    monkeypatch.setattr(published, "BATCH", 2)

    rng = np.random.default_rng(1)
    images = [Image.fromarray(a) for a in rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)]
    prompts = ["a cat", "the dog", "a sandwich"]
    got = load_reward(Eval(reward="pickscore"), CPU)(images, prompts)
    for image, prompt, value in zip(images, prompts, got, strict=True):
        inputs = processor(images=image, text=[prompt], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        assert float(value) == pytest.approx(
            float(cosine * model.logit_scale.detach().exp()), abs=1e-4
        )


def test_hpsv2_is_open_clip_with_the_named_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-for-hps.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(tmp_path / "tiny-for-hps.json")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-for-hps")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")
    monkeypatch.setattr(hpsv2, "MODEL", "tiny-for-hps")
    monkeypatch.setattr(published, "BATCH", 2)
    monkeypatch.setenv("HPSV2", str(tmp_path / "hps.pt"))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(3)]
    prompts = ["a cat", "a dog", "a star"]
    found = load_reward(Eval(reward="hpsv2"), CPU)(images, prompts)
    with torch.no_grad():
        pictures = model.eval().encode_image(torch.stack([preprocess(i) for i in images]))
        texts = model.encode_text(open_clip.get_tokenizer("tiny-for-hps")(prompts))
    assert found == pytest.approx(torch.cosine_similarity(pictures, texts).numpy(), abs=1e-5)
    assert len(set(found.round(3))) > 1


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
VISION = {**image_reward.VISION, **SIZES, "num_attention_heads": 4, "image_size": 32}
TEXT = {**image_reward.TEXT, **SIZES, "num_attention_heads": 2, "encoder_hidden_size": 32}
TEXT |= {"vocab_size": 12, "max_position_embeddings": 64}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red"]


def small_vision() -> timm.models.VisionTransformer:
    """BLIP's image encoder as it was published, only smaller."""
    return timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=0
    ).eval()


def checkpoint() -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    torch.manual_seed(0)
    text = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)
    sizes = {0: (32, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    state = {f"blip.visual_encoder.{k}": v for k, v in small_vision().state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    for n, (a, b) in sizes.items():
        layer = torch.nn.Linear(a, b).state_dict()
        state |= {f"mlp.layers.{n}.{k}": v for k, v in layer.items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    return state


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local copy of a small ImageReward."""
    monkeypatch.setattr(image_reward, "VISION", VISION)
    monkeypatch.setattr(image_reward, "TEXT", TEXT)
    monkeypatch.setattr(published, "BATCH", 2)
    monkeypatch.setenv("IMAGEREWARD", str(tmp_path))
    torch.save(checkpoint(), tmp_path / image_reward.FILE)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def test_imagereward_encodes_images_as_timm_does() -> None:
    state, theirs = checkpoint(), small_vision()
    before = "blip.visual_encoder."
    theirs.load_state_dict(
        {k.removeprefix(before): v for k, v in state.items() if k.startswith(before)}
    )
    network = image_reward.Network(VISION, TEXT).eval()
    network.read(state)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = network.vision(pixel_values=pixels).last_hidden_state
        assert (ours - theirs.forward_features(pixels)).abs().max() < 1e-5


def test_every_weight_of_imagereward_is_read() -> None:
    state = checkpoint()
    network = image_reward.Network(VISION, TEXT)
    network.read(state)
    ours = network.state_dict()
    for name, value in state.items():
        if not name.endswith("position_ids"):
            assert ours.pop(image_reward.renamed(name)).equal(value), name
    assert all(name.endswith("position_ids") for name in ours)
    del state["mlp.layers.7.bias"]
    with pytest.raises(UserError, match=r"ImageReward.pt: has no mlp.7.bias"):
        network.read(state)


def test_imagereward_is_the_heads_value_of_the_first_token(folder: Path) -> None:
    """One image at a time, with the head written out; prompts of different lengths in a batch."""
    reward, state = load_reward(Eval(reward="imagereward"), CPU), checkpoint()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(3)]
    prompts = ["a cat", "a red dog", "red"]
    network = image_reward.Network(VISION, TEXT).eval()
    network.read(state)
    mean, std = (torch.tensor(c)[:, None, None] for c in image_reward.COLOURS)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = (torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 - mean) / std
        ids = [2, *(WORDS.index(word) for word in prompt.split()), 3]
        with torch.no_grad():
            seen = network.vision(pixel_values=pixels[None]).last_hidden_state
            told = network.text(
                input_ids=torch.tensor([ids]), encoder_hidden_states=seen, is_decoder=False
            ).last_hidden_state[0, 0]
            for n in (0, 2, 4, 6, 7):
                told = state[f"mlp.layers.{n}.weight"] @ told + state[f"mlp.layers.{n}.bias"]
        expected.append((told.item() - 0.16717362830052426) / 1.0333394966054072)
    assert reward(images, prompts).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 5) for value in expected}) == 3
    assert reward(images[:1], ["red"]).item() != pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "imagereward"])
def test_what_does_not_load_says_what_to_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reward, "VISION", VISION)
    monkeypatch.setattr(image_reward, "TEXT", TEXT)
    monkeypatch.setenv(name.upper(), str(tmp_path))
    with pytest.raises(UserError, match=f"set {name.upper()} to a local copy"):
        load_reward(Eval(reward=name), CPU)
