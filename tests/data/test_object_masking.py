"""LXMERT's regions: from a dump in the authors' form to answers, and masked for pre-training."""

from __future__ import annotations

import base64

import numpy
import pytest
import torch

import zoo
from tests.strategies import build, small_config
from zoo.data.regions.files import read_regions
from zoo.data.regions.regions import Regions, stack
from zoo.data.vision_masking import mask_objects
from zoo.errors import InputError


def b64(array: numpy.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def dump(path, pictures: int = 3, regions: int = 4):
    """A TSV of ten columns, as LXMERT's detector writes it."""
    draw = numpy.random.default_rng(0)
    for number in range(pictures):
        objects, attributes = (draw.integers(0, n, regions) for n in (6, 3))
        sure = [draw.random(regions, dtype=numpy.float32) for _ in range(2)]
        boxes = numpy.array([[10 * k, 5 * k, 10 * k + 20, 5 * k + 30] for k in range(regions)], dtype=numpy.float32)
        features = draw.standard_normal((regions, 5), dtype=numpy.float32)
        detected = [b64(objects), b64(sure[0]), b64(attributes), b64(sure[1])]
        cells = [f"picture-{number}", 100, 200, *detected, regions, b64(boxes), b64(features)]
        with path.open("a") as file:
            file.write("\t".join(map(str, cells)) + "\n")
    return path


def test_a_dump_of_the_authors_is_answered_and_learned_from(tmp_path):
    pictures = dict(read_regions(dump(tmp_path / "obj36.tsv"), detector=None))
    batch = stack(list(pictures.values()))
    assert batch.attributes.shape == batch.attribute_confidence.shape == (3, 4)
    assert not torch.equal(batch.confidence, batch.attribute_confidence)
    config = small_config("lxmert")
    given = batch.for_model(config)
    assert given["visual_boxes"][0, 1].tolist() == pytest.approx([10 / 200, 5 / 100, 30 / 200, 35 / 100])
    assert given["visual_features"].shape == (3, 4, 5)  # none for the whole picture
    ids = torch.tensor([[2, 5, 7, 3]] * 3)
    model = build("lxmert", config, "visual-question-answering", num_labels=9, dtype=torch.float32)
    assert model(ids, **given).logits.shape == (3, 9)
    model = build("lxmert", config, "pretraining", dtype=torch.float32)
    masked = mask_objects(batch, probability=0.5, generator=torch.Generator().manual_seed(0))
    out = model(ids, **given | masked)
    assert set(out.losses) == {"masked_objects", "masked_attributes", "masked_features"}
    assert out.loss.isfinite()
    saved = tmp_path / "regions.safetensors"
    pictures["picture-1"].save(saved)
    again = Regions.load(saved)
    assert torch.equal(again.attributes, pictures["picture-1"].attributes)


def ragged(pictures: int = 40) -> Regions:
    """Pictures of two to five regions, no two features alike."""
    made = []
    for number in range(pictures):
        count = 2 + number % 4
        features = torch.arange(count, dtype=torch.float32)[:, None] + 10 * number + torch.tensor([1.0, 0.5])
        boxes = torch.tensor([[1.0, 1, 50, 50]]).repeat(count, 1)
        sure = torch.full((count,), 0.5)
        made.append(Regions(features, boxes, (100, 100), labels=torch.arange(count), confidence=sure))
    return stack(made)


def test_regions_lose_their_feature_keep_it_or_get_that_of_another_picture():
    batch, counts = ragged(), {"zero": 0, "kept": 0, "other": 0}
    chosen_all = 0
    for seed in range(40):
        masked = mask_objects(batch, generator=torch.Generator().manual_seed(seed))
        chosen = masked["region_labels"].bool()
        assert not (chosen & ~batch.real).any()
        assert torch.equal(masked["visual_features"][~chosen], batch.features[~chosen])
        assert torch.equal(masked["region_targets"], batch.features)
        chosen_all += int(chosen.sum())
        for row, slot in chosen.nonzero().tolist():
            found, own = masked["visual_features"][row, slot], batch.features[row, slot]
            if not found.any():
                counts["zero"] += 1
            elif torch.equal(found, own):
                counts["kept"] += 1
            else:
                counts["other"] += 1
                picture, region = divmod(round(float(found[1]) - 0.5), 10)
                assert picture != row
                assert batch.real[picture, region]
                assert torch.equal(found, batch.features[picture, region])
    assert chosen_all / (40 * int(batch.real.sum())) == pytest.approx(0.15, abs=0.02)
    for kind, share in (("zero", 0.8), ("kept", 0.1), ("other", 0.1)):
        assert counts[kind] / chosen_all == pytest.approx(share, abs=0.04)


def test_classes_count_everywhere_or_at_masked_regions_alone():
    batch = ragged(6)
    for everywhere in (True, False):
        masked = mask_objects(batch, everywhere=everywhere, generator=torch.Generator().manual_seed(3))
        counted = batch.real if everywhere else masked["region_labels"].bool()
        assert torch.equal(masked["object_confidence"], counted * 0.5)
        assert "attribute_labels" not in masked
    with pytest.raises(InputError, match="two pictures"):
        mask_objects(stack([zoo.Regions(torch.rand(2, 3), torch.tensor([[0.0, 0, 9, 9], [1, 1, 5, 5]]), (10, 10))]))
