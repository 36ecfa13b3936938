"""Regions: what they refuse, what models read of them, and the dumps they come from."""

from __future__ import annotations

import base64
import math
import pickle
import sys
import types
import weakref
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
import zoo.data.regions.files as region_files
from tests.strategies import small_config
from zoo.data.regions.detectors import DETECTORS
from zoo.data.regions.dumps import kind_of
from zoo.data.regions.files import check_regions, convert_regions, read_regions, save_regions
from zoo.data.regions.grid import grid_regions, patches, resnet_grid
from zoo.data.regions.regions import Regions, box_overlap, stack
from zoo.errors import CheckpointError, InputError, MissingExtraError, UnknownNameError
from zoo.models.vlp import VlpConfig

SIZE = (200.0, 100.0)


def some(count: int = 3, width: int = 4, seed: int = 0, **fields: Any) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 0.5
    extent = torch.rand(count, 2, generator=generator) * 0.4 + 0.05
    boxes = torch.cat([corner, corner + extent], 1) * torch.tensor([*SIZE, *SIZE])
    return Regions(torch.randn(count, width, generator=generator), boxes, SIZE, **fields)


# -- encodings ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(*[st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.01, 0.5), st.floats(0.01, 0.5)]),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_box_says_the_same_in_every_format_and_each_encoding_is_its_formula(shares):
    wide, high = SIZE
    xyxy = torch.tensor([[x * wide, y * high, (x + w) * wide, (y + h) * high] for x, y, w, h in shares])
    xywh = torch.tensor([[x * wide, y * high, w * wide, h * high] for x, y, w, h in shares])
    normal = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in shares])
    features = torch.zeros(len(shares), 2)  # no feature, so that a box of zeros is padding's and no mistake
    kinds = [
        Regions(features, b + 0.0, SIZE, format=f) for b, f in ((xyxy, "xyxy"), (xywh, "xywh"), (normal, "normalised"))
    ]
    for regions in kinds:
        for numbers in (4, 5, 7):
            rows = regions.encoded(numbers)
            assert rows.shape == (len(shares), numbers)
            for row, (x, y, w, h) in zip(rows.tolist(), shares, strict=True):
                wanted = [x, y, x + w, y + h] + {4: [], 5: [w * h], 7: [w, h, w * h]}[numbers]
                assert row == pytest.approx(wanted, abs=1e-5)
        assert regions.oscar()[0].tolist() == pytest.approx([*kinds[0].encoded(7)[0, :6].tolist()], abs=1e-5)


def test_vl_berts_encoding_is_sines_then_cosines_of_each_number():
    x, y, w, h = 20.0, 10.0, 100.0, 50.0
    made = Regions(torch.ones(1, 2), torch.tensor([[x, y, x + w, y + h]]), SIZE).vl_bert(8)
    numbers = [100 * (x + w / 2) / 200, 100 * (y + h / 2) / 100, 100 * w / 200, 100 * h / 100]
    wanted = [f(v / 1000 ** (k / 4)) for v in numbers for f in (math.sin, math.cos) for k in range(4)]
    assert made.shape == (1, 32)
    assert made[0].tolist() == pytest.approx(wanted, abs=1e-4)


def test_vlp_needs_what_the_detector_said():
    confidence, classes = torch.tensor([0.1, 0.2, 0.3]), torch.rand(3, 4)
    with pytest.raises(InputError, match="confidence"):
        some(class_probabilities=classes).vlp()
    with pytest.raises(InputError, match="class_probabilities"):
        some(confidence=confidence).vlp()
    with pytest.raises(InputError, match=r"\(3, 'classes'\)"):
        some(class_probabilities=classes[:2])


def test_vlps_code_divides_by_the_largest_box_and_normalizes_boxes_and_classes_apart():
    confidence, classes = torch.tensor([0.1, 0.2, 0.3]), torch.rand(3, 4)
    regions = some(confidence=confidence, class_probabilities=classes, mask=torch.tensor([True, True, False]))
    made, boxes = regions.vlp(), regions.xyxy()[:2].tolist()
    across, down = (max(box[axis + 2] for box in boxes) + 1e-5 for axis in (0, 1))
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        box = [x1 / across, y1 / down, x2 / across, y2 / down]
        numbers = [*box, (box[2] - box[0]) * (box[3] - box[1]), float(confidence[row])]
        wanted = []
        for part in (numbers, classes[row].tolist()):
            mean = sum(part) / len(part)
            variance = sum((v - mean) ** 2 for v in part) / len(part)
            wanted += [(v - mean) / math.sqrt(variance + 1e-5) for v in part]
        assert made[row].tolist() == pytest.approx(wanted, abs=1e-4)
    assert not made[2].any(), "zeros at padding"
    config = VlpConfig(visual_size=regions.width, box_size=10)
    assert torch.equal(regions.for_model(config)["visual_boxes"][0], made)
    with pytest.raises(InputError, match="its detector has 1601 classes"):
        regions.for_model(VlpConfig(visual_size=regions.width))
    whole = regions.with_whole_image()
    assert not whole.class_probabilities[0].any()


def test_the_whole_picture_is_the_mean_of_real_regions_and_the_whole_box():
    regions = some(mask=torch.tensor([True, True, False]))
    first, last = regions.with_whole_image(), regions.with_whole_image("last")
    assert torch.allclose(first.features[0], regions.features[:2].mean(0))
    assert first.encoded(5)[0].tolist() == [0, 0, 1, 1, 1]
    assert last.encoded(5)[-1].tolist() == [0, 0, 1, 1, 1]
    assert first.real.tolist() == [True, True, True, False]
    assert last.real.tolist() == [True, True, False, True]
    with pytest.raises(InputError, match="already"):
        first.with_whole_image()
    with pytest.raises(InputError, match="4, 5 or 7"):
        first.encoded(6)


# -- what can't be meant -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "format_", "said"),
    [
        ([[10, 10, 300, 50]], "xyxy", "outside their picture"),
        ([[-9, 10, 30, 50]], "xyxy", "outside their picture"),
        ([[120, 60, 60, 30]], "xyxy", "'xywh'"),
        ([[120, 60, 190, 90]], "xywh", r"as x1, y1, x2, y2 they would fit"),
        ([[10, 20, 50, 150]], "xyxy", "x and y exchanged"),
        ([[0, 0, 0, 0]], "xyxy", "box of zeros"),
        ([[0.1, 0.2, 0.5, 0.6]], "xyxy", "'normalised'"),
        ([[10, 20, 50, 60]], "normalised", "'xyxy'"),
        ([[10, 20, float("nan"), 60]], "xyxy", "finite"),
    ],
)
def test_boxes_that_cant_be_meant_are_refused_with_what_they_may_be(boxes, format_, said):
    with pytest.raises(InputError, match=said):
        Regions(torch.ones(1, 3), torch.tensor(boxes), SIZE, format=format_)


def test_padding_may_hold_anything_and_rounding_is_borne():
    boxes = torch.tensor([[0.0, 0, 201, 101], [0, 0, 0, 0], [999, 999, -5, 0]])
    assert len(Regions(torch.ones(3, 2), boxes, SIZE, mask=torch.tensor([1, 0, 0]))) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": torch.ones(3, 2, dtype=torch.int64)}, "float"),
        ({"boxes": torch.ones(3, 5)}, "as the detector gave them"),
        ({"boxes": torch.ones(2, 4)}, "boxes must be"),
        ({"mask": torch.ones(3)}, "additive"),
        ({"confidence": torch.ones(2)}, "confidence must be"),
        ({"image_size": (1, 2, 3)}, "width, height"),
        ({"image_size": (0, 100)}, "positive"),
        ({"whole_image": "middle"}, "first"),
    ],
)
def test_wrong_shapes_are_refused(changes, said):
    given_ = {
        "features": torch.ones(3, 2),
        "boxes": torch.ones(3, 4) * torch.tensor([1, 2, 30, 40]),
        "image_size": SIZE,
    } | changes
    with pytest.raises(InputError, match=said):
        Regions(**given_)


def test_names_are_refused_with_the_closest():
    for fields in ({"format": "xyhw"}, {"detector": "bottom-up"}):
        with pytest.raises(UnknownNameError, match="did you mean"):
            some(**fields)


# -- for models --------------------------------------------------------------------------------------------------------


def test_a_model_gets_what_it_reads():
    vilbert, visualbert = (small_config(name, visual_size=4) for name in ("vilbert", "visualbert"))
    made = some().for_model(vilbert)
    assert made["visual_features"].shape == (1, 4, 4)
    assert made["visual_boxes"][0, 0].tolist() == [0, 0, 1, 1, 1]
    assert some().with_whole_image().for_model(vilbert)["visual_features"].shape == (1, 4, 4)
    without = some().for_model(vilbert.replace(whole_image=False))  # as MMF trained it
    assert torch.equal(without["visual_features"], made["visual_features"][:, 1:])
    assert torch.equal(without["visual_boxes"], made["visual_boxes"][:, 1:])
    plain = stack([some(2), some(3, seed=1)]).for_model(visualbert)
    assert set(plain) == {"visual_features", "visual_mask"}
    assert plain["visual_mask"].tolist() == [[True, True, False], [True, True, True]]
    with torch.no_grad():
        out = zoo.create("vilbert-base", **vilbert.to_dict()).eval()(torch.ones(1, 3, dtype=torch.long), **made)
    assert out.image.last_hidden_state.shape == (1, 4, 6)
    with pytest.raises(InputError, match="4 wide, these are 6 wide"):
        some(width=6).for_model(vilbert)
    with pytest.raises(InputError, match=r"detectors whose features are 2048 wide: bottom-up-attention \(2048\)"):
        some().for_model(zoo.config("vilbert-base"))
    assert {about.width for about in DETECTORS.values()} == {512, 1024, 2048, None}  # None: grids


def test_a_stack_is_padded_and_refuses_what_does_not_agree():
    batch = stack([some(2, confidence=torch.ones(2)), some(3, seed=1, confidence=torch.ones(3))])
    assert batch.features.shape == (2, 3, 4)
    assert torch.equal(batch.encoded(5)[0, :2], some(2).encoded(5))
    assert not batch.encoded(5)[0, 2].any()
    for other in (some(2, width=5), some(2, confidence=torch.ones(2))):
        with pytest.raises(InputError, match="agree"):
            stack([some(2), other])


def test_overlap_counts_the_last_pixel_where_told():
    a = torch.tensor([[0.0, 0, 9, 9]])
    assert box_overlap(a, torch.tensor([[5.0, 5, 14, 14]])).item() == pytest.approx(25 / 175)
    assert box_overlap(a, torch.tensor([[5.0, 5, 14, 14]]), inclusive=False).item() == pytest.approx(16 / 146)
    assert box_overlap(a, torch.tensor([[20.0, 20, 30, 30]])).item() == 0


def test_a_grid_becomes_cells_row_by_row():
    network = nn.AvgPool2d(2)
    pictures = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    regions = grid_regions(pictures, network, size=None)
    assert regions.features.shape == (2, 6, 3)
    assert regions.encoded(4)[0, 1].tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0.5])
    assert regions.encoded(4)[0, 3].tolist() == pytest.approx([0, 0.5, 1 / 3, 1])
    wanted = (pictures[0, 0, 2:4, 0:2].mean() - 0.485) / 0.229
    assert float(regions.features[0, 3, 0]) == pytest.approx(float(wanted), abs=1e-5)
    with pytest.raises(InputError, match=r"0\.\.1"):
        grid_regions(pictures * 255, network)


def test_a_patch_of_pixels_is_a_region_and_is_labelled_so():
    pictures = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    regions = grid_regions(pictures, patches(2), size=None)
    assert (regions.detector, regions.width, len(regions)) == ("patch-grid", 12, 6)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = (pictures[0, :, 2:4, 0:2] - mean) / std
    assert torch.allclose(regions.features[0, 3], wanted.flatten(), atol=1e-5)
    assert grid_regions(pictures, nn.AvgPool2d(2), size=None).detector == "grid"


def test_a_resnet_ends_at_its_last_grid_and_only_trained_weights_make_it_torchvisions(monkeypatch):
    asked = []

    def get_model(name: str, weights: str | None) -> nn.Module:
        asked.append((name, weights))
        return nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setitem(
        sys.modules, "torchvision", types.SimpleNamespace(models=types.SimpleNamespace(get_model=get_model))
    )
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = [grid_regions(images, resnet_grid("resnet18", pretrained=trained), size=None) for trained in (True, False)]
    assert [(regions.detector, len(regions)) for regions in made] == [("torchvision-grid", 4), ("grid", 4)]
    assert asked == [("resnet18", "DEFAULT"), ("resnet18", None)]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match="vision"):
        resnet_grid()


# -- dumps -------------------------------------------------------------------------------------------------------------


def b64(array: numpy.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def pictures(count: int = 3) -> dict[str, Regions]:
    return {
        f"{100 + i}": some(i + 1, seed=i, confidence=torch.rand(i + 1), labels=torch.arange(i + 1))
        for i in range(count)
    }


def same(found: Regions, wanted: Regions, *, more: bool = False) -> None:
    assert torch.equal(found.features, wanted.features)
    assert torch.allclose(found.xyxy(), wanted.xyxy(), atol=1e-4)
    assert torch.equal(found.image_size, wanted.image_size)
    if more:
        assert torch.allclose(found.confidence, wanted.confidence)
        assert torch.equal(found.labels, wanted.labels)


def write_tsv(path: Any, columns: int) -> dict[str, Regions]:
    made = pictures()
    lines = []
    for name, r in made.items():
        boxes, features = b64(r.boxes.numpy()), b64(r.features.numpy())
        if columns == 6:
            cells = [name, 200, 100, len(r), boxes, features]
        else:
            ids, sure = b64(r.labels.numpy()), b64(r.confidence.numpy())
            cells = [name, 100, 200, ids, sure, ids, sure, len(r), boxes, features]
        lines.append("\t".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n")
    return made


@pytest.mark.parametrize("columns", [6, 10])
def test_tsv_dumps_are_read(tmp_path, columns):
    path = tmp_path / "dump.tsv"
    made = write_tsv(path, columns)
    found = dict(read_regions(path, detector="bottom-up-attention"))
    assert list(found) == list(made)
    for name, regions in found.items():
        same(regions, made[name], more=columns == 10)
        assert regions.detector == "bottom-up-attention"
    report = check_regions(path)
    assert report.passed
    assert (report.pictures, report.fewest, report.most, report.widths) == (3, 1, 3, (4,))


def test_a_tsv_dump_says_the_same_with_a_mark_other_ends_and_empty_lines(tmp_path):
    path = tmp_path / "dump.tsv"
    made = write_tsv(path, 6)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n")
    found = dict(read_regions(path, detector="bottom-up-attention"))
    assert list(found) == list(made)
    for name, regions in found.items():
        same(regions, made[name], more=False)


def test_a_broken_line_says_where_it_is_and_a_wrong_picture_which(tmp_path):
    path = tmp_path / "dump.tsv"
    write_tsv(path, 6)
    path.write_text(path.read_text() + "104\t200\t100\n")
    with pytest.raises(CheckpointError, match="line 4 has 3 columns"):
        list(read_regions(path))
    lines = path.read_text().split("\n")[:2]
    lines[1] = lines[1].replace("\t200\t100\t", "\t20\t10\t")
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="picture 101"):
        list(read_regions(path))
    report = check_regions(path)
    assert not report.passed
    assert list(report.problems) == ["101"]
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(InputError, match=r"empty.tsv holds no picture"):
        check_regions(tmp_path / "empty.tsv")
    with pytest.raises(InputError, match="Bert reads no pictures"):
        Regions(torch.rand(1, 8), torch.tensor([[0, 0, 5, 5]]), (9, 9)).for_model(zoo.config("bert-base"))
    path.write_text("1\t200\t100\t1\tAAAA\tnot base64!\n")
    with pytest.raises(CheckpointError, match="base64"):
        list(read_regions(path))
    path.write_text("1\t200\t100\t3\tAAAA\tAAAA\n")
    with pytest.raises(CheckpointError, match="3 rows"):
        list(read_regions(path))


def test_npz_and_npy_folders_are_read(tmp_path):
    made = pictures()
    for name, r in made.items():
        numpy.savez(tmp_path / f"{name}.npz", x=r.features, bbox=r.boxes, num_bbox=len(r), image_h=100, image_w=200)
    for name, regions in read_regions(tmp_path):
        same(regions, made[name])
    folder = tmp_path / "npy"
    folder.mkdir()
    for name, r in made.items():
        numpy.save(folder / f"{name}.npy", r.features)
        numpy.save(folder / f"{name}_boxes.npy", r.boxes)
        numpy.save(folder / f"{name}_size.npy", numpy.array(SIZE))
    found = dict(read_regions(folder))
    assert set(found) == set(made)
    for name, regions in found.items():
        same(regions, made[name])
    (folder / "100_size.npy").unlink()
    with pytest.raises(CheckpointError, match="100_size"):
        list(read_regions(folder))


def test_uniters_npz_holds_shares_alone(tmp_path):
    regions = some(2)
    numpy.savez(
        tmp_path / "a.npz", features=regions.features, norm_bb=regions.encoded(7), conf=numpy.array([0.5, 0.6], "f4")
    )
    _, found = next(read_regions(tmp_path / "a.npz"))
    assert found.format == "normalised"
    assert torch.allclose(found.encoded(7), regions.encoded(7), atol=1e-6)


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_lmdb_values_are_read_and_never_run(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    made = pictures()
    with (
        lmdb.open(str(tmp_path / "dump.lmdb"), map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for name, r in made.items():
            value = {
                "image_id": name,
                "image_h": 100,
                "image_w": 200,
                "num_boxes": len(r),
                "boxes": base64.b64encode(r.boxes.numpy().tobytes()) if name == "100" else r.boxes.numpy(),
                "features": base64.b64encode(r.features.numpy().tobytes()) if name == "100" else r.features.numpy(),
                "cls_prob": Evil(),
            }
            transaction.put(name.encode(), pickle.dumps(value))
        transaction.put(b"keys", pickle.dumps([b"100"]))
    assert kind_of(tmp_path / "dump.lmdb") == "lmdb"
    found = dict(read_regions(tmp_path / "dump.lmdb"))
    assert set(found) == set(made)
    for name, regions in found.items():
        same(regions, made[name])


@pytest.mark.parametrize("shape", ["groups", "stacked", "adaptive"])
def test_hdf5_dumps_are_read(tmp_path, shape):
    h5py = pytest.importorskip("h5py")
    made = {name: some(3 if shape == "stacked" else i + 1, seed=i) for i, name in enumerate(("0", "1", "2"))}
    path = tmp_path / "dump.hdf5"
    with h5py.File(path, "w") as file:
        if shape == "groups":
            for name, r in made.items():
                group = file.create_group(name)
                group["features"], group["boxes"], group["img_w"], group["img_h"] = r.features, r.boxes, 200, 100
        else:
            join = numpy.stack if shape == "stacked" else numpy.concatenate
            file["image_features"] = join([r.features.numpy() for r in made.values()])
            file["image_bb"] = join([r.boxes.numpy() for r in made.values()])
            file["image_w"], file["image_h"] = numpy.full(3, 200), numpy.full(3, 100)
            if shape == "adaptive":
                file["pos_boxes"] = numpy.array([[0, 1], [1, 3], [3, 6]])
    found = dict(read_regions(path))
    assert set(found) == set(made)
    for name, regions in found.items():
        same(regions, made[name])


def test_a_dump_becomes_safetensors_and_comes_back(tmp_path):
    source, target = tmp_path / "dump.tsv", tmp_path / "regions.safetensors"
    made = write_tsv(source, 10)
    assert convert_regions(source, target, detector="bottom-up-attention") == 3
    found = dict(read_regions(target))
    assert set(found) == set(made)
    for name, regions in found.items():
        same(regions, made[name], more=True)
        assert regions.detector == "bottom-up-attention"
    assert convert_regions(source, tmp_path / "half.safetensors", dtype=torch.float16, limit=2) == 2
    assert next(read_regions(tmp_path / "half.safetensors"))[1].features.dtype == torch.float16
    some(mask=torch.tensor([True, False, True])).save(tmp_path / "one.safetensors")
    assert Regions.load(tmp_path / "one.safetensors").real.tolist() == [True, False, True]
    with pytest.raises(InputError, match="twice"):
        save_regions(tmp_path / "x.safetensors", [("a", some()), ("a", some())])
    with pytest.raises(InputError, match="no pictures"):
        save_regions(tmp_path / "x.safetensors", {})
    with pytest.raises(InputError, match=r"by name; read them with"):
        Regions.load(target)


def test_a_batch_of_pictures_comes_back_as_it_was(tmp_path):
    batch = stack([some(2), some(3, seed=1)])
    batch.save(tmp_path / "batch.safetensors")
    found = Regions.load(tmp_path / "batch.safetensors")
    same(found, batch)
    assert torch.equal(found.real, batch.real)


class Counted:
    """Pictures made one by one, which counts how many of their features are alive at once."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most, self.passes = count, 0, 0, 0

    def __iter__(self) -> Any:
        self.passes += 1
        for number in range(self.count):
            yield f"{number}", self.count_in(some(number % 4, seed=number))

    def count_in(self, regions: Regions) -> Regions:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(regions, self.gone)
        return regions

    def gone(self) -> None:
        self.alive -= 1


def test_a_dump_is_converted_with_one_picture_in_memory_at_a_time(tmp_path, monkeypatch):
    pictures = Counted(40)
    assert save_regions(tmp_path / "x.safetensors", pictures) == 40
    assert pictures.passes == 2
    assert pictures.most <= 4  # the one that is written, the one that is being made, and what loops still hold
    source = tmp_path / "dump.tsv"
    lines = [
        "\t".join(
            map(
                str,
                (
                    number,
                    200,
                    100,
                    2,
                    b64(some(2, seed=number).boxes.numpy()),
                    b64(some(2, seed=number).features.numpy()),
                ),
            )
        )
        for number in range(40)
    ]
    source.write_text("\n".join(lines) + "\n")
    counter, made = Counted(0), region_files._regions
    monkeypatch.setattr(region_files, "_regions", lambda values, options: counter.count_in(made(values, options)))
    seen: list[tuple[str, int, int | None]] = []
    assert convert_regions(source, tmp_path / "y.safetensors", progress=lambda *said: seen.append(said)) == 40
    assert counter.most <= 4
    assert (seen[0], seen[39], seen[40], seen[-1]) == (
        ("reading", 1, None),
        ("reading", 40, None),
        ("writing", 1, 40),
        ("writing", 40, 40),
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_what_is_written_comes_back_picture_by_picture(tmp_path_factory, counts, masked, labelled):
    path = tmp_path_factory.mktemp("regions") / "x.safetensors"
    made = {}
    for number, count in enumerate(counts):
        more = {"labels": torch.arange(count)} if labelled else {}
        mask = torch.arange(count) % 2 == 0 if masked and number % 2 else None
        made[f"a/{number}\n"] = some(count, seed=number, detector="grid", mask=mask, **more)
    save_regions(path, made)
    found = dict(read_regions(path))
    assert list(found) == list(made)
    for name, wanted in made.items():
        same(found[name], wanted)
        assert torch.equal(found[name].real, wanted.real)
        assert found[name].detector == "grid"
        assert found[name].labels is None if wanted.labels is None else torch.equal(found[name].labels, wanted.labels)


def test_the_header_does_not_grow_with_the_pictures(tmp_path):
    for count in (1, 50):
        save_regions(
            tmp_path / f"{count}.safetensors", {f"{number:09}": some(1, seed=number) for number in range(count)}
        )
    sizes = [int.from_bytes((tmp_path / f"{count}.safetensors").read_bytes()[:8], "little") for count in (1, 50)]
    assert sizes[1] - sizes[0] < 40  # more digits alone; readers refuse headers of more than 16 MB


def test_a_file_of_regions_appears_whole_or_not_at_all(tmp_path):
    class Changes:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            yield "a", some()
            yield ("b" if self.passes == 1 else "c"), some()

    with pytest.raises(InputError, match="'b' became 'c'"):
        save_regions(tmp_path / "x.safetensors", Changes())
    for other in (some(width=5), some(labels=torch.arange(3)), some(detector="grid")):
        with pytest.raises(InputError, match="must agree"):
            save_regions(tmp_path / "x.safetensors", {"a": some(), "b": other})
    with pytest.raises(CheckpointError, match="not finite"):
        save_regions(
            tmp_path / "x.safetensors",
            {"a": some(), "b": replace(some(), features=torch.full((3, 4), 1e30))},
            dtype=torch.float16,
        )
    assert list(tmp_path.iterdir()) == []


def test_names_and_rows_that_do_not_belong_together_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_regions(path, {"a": some(), "b": some(2)})
    tensors, header = load_file(path), {"zoo.regions": '{"format": "xyxy", "detector": null, "whole_image": null}'}
    for starts in ([0, 3], [0, 3, 9], [1, 3, 5], [0, 5, 3]):
        save_file({**tensors, "starts": torch.tensor(starts)}, path, header)
        with pytest.raises(CheckpointError, match="do not belong together"):
            list(read_regions(path))


def test_files_that_are_no_dumps_are_refused(tmp_path):
    other = tmp_path / "x.bin"
    other.write_bytes(b"something else entirely")
    for path, said in ((other, "no known dump"), (tmp_path / "nothing", "does not exist"), (tmp_path, "no data.mdb")):
        with pytest.raises(CheckpointError, match=said):
            kind_of(path)
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="holds no regions"):
        list(read_regions(tmp_path / "plain.safetensors"))


def test_as_many_regions_are_kept_as_the_detector_is_sure_of_within_bounds():
    confidence = torch.tensor([0.9, 0.5, 0.3, 0.21, 0.2, 0.1])
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(6, 1) + torch.arange(6)[:, None]
    regions = zoo.Regions(torch.rand(6, 4), boxes, (50, 40), confidence=confidence, labels=torch.arange(6))
    for bounds, count in (((0.2, 1, 100), 4), ((0.2, 5, 100), 5), ((0.2, 1, 3), 3), ((0.2, 10, 100), 6)):
        kept = regions.confident(*bounds)
        assert len(kept) == count
        assert torch.equal(kept.features, regions.features[:count])
        assert kept.labels.tolist() == list(range(count))
    with pytest.raises(InputError, match="confidence"):
        zoo.Regions(torch.rand(6, 4), boxes, (50, 40)).confident()
