"""Pictures: what is read, what is refused, and what comes out, beside transformers and torchvision."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2 as transforms

import zoo
from tests.reference import check
from tests.references.case import golden_cases
from zoo.data.images.boxes import GridBoxes
from zoo.data.images.files import KINDS, of_open_clip, of_transformers, read_images, to_transformers, write_images
from zoo.data.images.images import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, Images
from zoo.data.images.reading import FORMATS, read_picture
from zoo.data.regions.grid import grid_regions, resnet_grid
from zoo.errors import CheckpointError, ConfigError, InputError, MissingExtraError, UnknownNameError

RASTERS = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]
PLAIN = Images(resize="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise(height: int = 9, width: int = 7, channels: int = 3, seed: int = 0) -> numpy.ndarray[Any, Any]:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=numpy.uint8)


def smooth(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(5, 6)).resize((width, height), Image.Resampling.BICUBIC)


def content(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("case", golden_cases("clip/image-preprocess", "brivl/grid-boxes"), ids=lambda path: path.name)
def test_public_preprocessing_is_met(case):
    assert check(case) == []


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_from_wherever_it_comes(tmp_path):
    array = noise()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "one.png")
    tensor = torch.from_numpy(array)
    every = [
        *(str(tmp_path / "one.png"), tmp_path / "one.png", (tmp_path / "one.png").read_bytes()),
        *(picture, array, tensor, tensor.permute(2, 0, 1), array.transpose(2, 0, 1)),
    ]
    wanted = tensor.permute(2, 0, 1).float() / 255
    made = PLAIN(every)
    assert made.dtype == torch.float32
    assert all(torch.equal(one, wanted) for one in made)
    assert torch.equal(PLAIN(picture), wanted[None])
    assert torch.equal(PLAIN(torch.stack([tensor, tensor])), torch.stack([wanted, wanted]))
    assert torch.equal(PLAIN(iter([picture])), wanted[None])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (noise().astype(numpy.float32) / 255, "must be uint8"),
        (torch.zeros(2, 2, 3), "must be uint8"),
        (noise(3, 5, 3), "may be"),
        (noise(4, 5, 4), r"\(height, width, 3\)"),
        (numpy.zeros((0, 4, 3), numpy.uint8), "at least one pixel"),
        (numpy.zeros(4, numpy.uint8), r"\(height, width, 3\)"),
        (7, "a path, the bytes"),
        (b"", "is empty"),
        (b"certainly no picture", "no picture in a format"),
        ("nowhere.png", "there is no picture nowhere.png"),
        (".", "is a folder"),
        ("https://example.org/a.png", "is an address"),
    ],
)
def test_what_is_no_picture_is_refused(source, said):
    with pytest.raises(InputError, match=said):
        PLAIN(source)


def test_an_empty_list_and_pictures_of_several_sizes_are_refused():
    with pytest.raises(InputError, match="at least one"):
        PLAIN([])
    with pytest.raises(InputError, match="9 x 6 and 9 x 7"):
        PLAIN([noise(9, 7), noise(9, 6)])


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="vision"):
        PLAIN(noise())


# -- odd files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", RASTERS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused_by_its_name(tmp_path, format, share):
    whole = content(Image.fromarray(noise(60, 50)), format)
    file = tmp_path / "half.bin"
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"half\.bin"):
        PLAIN(file)


@given(
    st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_a_damaged_file_gives_pixels_or_an_error_of_ours(damage, place, format):
    whole = content(Image.fromarray(noise(8, 8)), format)
    broken = whole[:place] + damage + whole[place + len(damage) :]
    try:
        made = PLAIN(broken)
    except InputError:
        return
    assert made.shape[:2] == (1, 3)


def test_one_pixel_is_enough():
    assert torch.allclose(Images(size=4, crop=4, mean=HALF, std=HALF)(noise(1, 1)), torch.tensor(0.0), atol=1.1)
    red = Images(size=5, crop=5, mean=(0.0,) * 3, std=(1.0,) * 3)(numpy.full((1, 1, 3), (255, 0, 0), numpy.uint8))
    assert torch.equal(red, torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 5, 5))


def test_other_modes_become_the_colors_that_they_show():
    gray = noise(6, 5, 1)[..., 0]
    shown = torch.from_numpy(gray)[None].expand(3, -1, -1).float() / 255
    assert torch.equal(PLAIN(Image.fromarray(gray))[0], shown)
    assert torch.equal(PLAIN(gray)[0], shown)  # an array (height, width)
    deep = Image.fromarray(gray.astype(numpy.uint16) * 257)  # 16 bits
    assert torch.equal(PLAIN(content(deep))[0], shown)
    assert torch.equal(PLAIN(deep.convert("I"))[0], shown)
    bits = Image.fromarray(gray > 127)
    assert torch.equal(PLAIN(bits)[0], torch.from_numpy(gray > 127)[None].expand(3, -1, -1).float())
    inks = Image.new("CMYK", (2, 2), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert torch.equal(PLAIN(content(inks, "JPEG", quality=100))[0, :, 0, 0].round(), torch.tensor([1.0, 0.0, 0.0]))


def test_values_without_a_known_range_are_refused():
    with pytest.raises(InputError, match="floats"):
        PLAIN(Image.fromarray(numpy.ones((2, 2), numpy.float32)))
    with pytest.raises(InputError, match="more than 16 bits"):
        PLAIN(Image.fromarray(numpy.full((2, 2), 70_000, numpy.int32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_background(mode):
    clear = Image.new("RGBA", (2, 1), (10, 10, 10, 0))
    clear.putpixel((1, 0), (10, 10, 10, 255))
    if mode == "P":
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 10, 10, 10, 10, 10])
        palette.putpixel((1, 0), 1)
        palette.info["transparency"] = 0
        made = content(palette, transparency=0)
    else:
        made = content(clear.convert(mode))
    first = lambda images: (images(made)[0, :, 0] * 255).round().T.tolist()  # noqa: E731
    assert first(PLAIN) == [[255] * 3, [10] * 3]
    assert first(PLAIN.replace(background=(1, 2, 3))) == [[1, 2, 3], [10] * 3]
    assert first(PLAIN.replace(background=None)) == [[10] * 3, [10] * 3]


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        made = content(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert torch.equal(PLAIN(made)[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0])), format


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(orientation):
    upright = Image.fromarray(numpy.zeros((4, 6, 3), numpy.uint8))
    upright.putpixel((0, 0), (255, 255, 255))  # the upper left corner
    back = {  # what takes the upright picture to what the camera stored
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = PLAIN(content(stored, exif=exif))
    assert made.shape == (1, 3, 4, 6)
    assert made[0, :, 0, 0].tolist() == [1, 1, 1]


def test_a_very_wide_picture_is_read_and_one_that_would_grow_beyond_bounds_refused():
    made = Images(size=8, crop=8)(content(Image.new("RGB", (30_000, 20), "green")))
    assert made.shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="crop it first"):
        Images(size=224)(Image.new("RGB", (30_000, 2)))
    with pytest.raises(InputError, match=r"30,000 x 20 pixels, more than the 1,000"):
        Images(max_pixels=1000)(Image.new("RGB", (30_000, 20)))


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says that it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(9_000, 10_000), (100_000, 100_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width, height):
    with pytest.raises(InputError, match="pixels"):
        PLAIN(bomb(width, height))


def test_no_format_is_read_that_would_start_a_program(tmp_path):
    file = tmp_path / "drawing.eps"
    Image.new("RGB", (2, 2)).save(file)
    assert "EPS" not in FORMATS
    with pytest.raises(InputError, match="no picture in a format"):
        read_picture(file)


# -- resizing, cropping, normalizing -----------------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_what_torchvision_composes(height, width, size, crop, interpolation):
    picture = Image.fromarray(noise(height, width))
    mode = transforms.InterpolationMode(interpolation)
    composed = transforms.Compose(
        [
            transforms.Resize(size, interpolation=mode),
            transforms.CenterCrop(crop),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    made = Images(size=size, crop=crop, interpolation=interpolation)(picture)[0]
    assert torch.allclose(made, composed(picture), atol=1e-6)


@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(2, 24), st.sampled_from(["bilinear", "bicubic"]), st.booleans()
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resizing_floats_is_torchvisions_resize_of_a_tensor(height, width, size, interpolation, antialias):
    tensor = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    resize = transforms.Resize((size, size), transforms.InterpolationMode(interpolation), antialias=antialias)
    images = PLAIN.replace(resize="exact", size=size, resizer="torch", interpolation=interpolation, antialias=antialias)
    picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
    assert torch.allclose(images(picture)[0], resize(tensor.float() / 255), atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pillows_pixels_are_near_those_of_torch_with_antialiasing_and_far_from_those_without(interpolation):
    images = PLAIN.replace(resize="exact", size=32, interpolation=interpolation)
    for picture in (smooth(120, 90), Image.fromarray(noise(120, 90))):
        pillow = images(picture)
        torch_ = images.replace(resizer="torch")(picture)
        assert float((pillow - torch_.clamp(0, 1)).abs().max()) <= 2 / 255  # two roundings to 8 bits
    aliased = images.replace(resizer="torch", antialias=False)(Image.fromarray(noise(120, 90)))
    assert float((pillow - aliased).abs().max()) > 0.2


@pytest.mark.parametrize(("height", "start"), [(7, 2), (8, 2), (9, 2), (10, 3), (11, 4)])
def test_the_middle_starts_at_the_nearest_pixel_or_at_the_one_below(height, start):
    column = numpy.repeat(numpy.arange(height, dtype=numpy.uint8)[:, None, None], 3, 2).repeat(4, 1)
    for rule, first in (("nearest", start), ("below", (height - 4) // 2)):
        made = PLAIN.replace(crop=4, crop_start=rule)(column)
        assert round(float(made[0, 0, 0, 0]) * 255) == first


def test_a_picture_smaller_than_its_crop_gets_a_black_border():
    made = PLAIN.replace(crop=(5, 4))(numpy.full((2, 2, 3), 255, numpy.uint8))
    assert made[0, 0].tolist() == [[0] * 4, [0, 1, 1, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resize": "longest"}, "resize must be one of"),
        ({"resizer": "opencv"}, "resizer must be one of"),
        ({"interpolation": "lanczos", "resizer": "torch"}, "interpolation must be one of nearest, bilinear, bicubic"),
        ({"antialias": False}, "Pillow always antialiases"),
        ({"size": (224, 224)}, 'resize="exact"'),
        ({"size": 0}, "positive"),
        ({"resize": "exact", "size": (3, 0)}, "size must be a positive number or two"),
        ({"crop": "big"}, "crop must be a positive number or two"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be three positive"),
        ({"mean": (1.0,)}, "mean must be three"),
        ({"background": (300, 0, 0)}, "background must be"),
        ({"max_pixels": 0}, "max_pixels must be"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Images(**fields)


def test_plain_values_and_back():
    images = Images(size=8, crop=(4, 6), crop_start="below", background=None, mean=IMAGENET_MEAN)
    assert Images.from_dict(json.loads(json.dumps(images.to_dict()))) == images
    assert images.shape == (4, 6)
    assert Images(resize="exact", size=7).shape == (7, 7)
    assert Images().shape is None
    with pytest.raises(UnknownNameError, match="'sise'"):
        Images.from_dict({"sise": 3})


def test_boxes_go_column_by_column_and_are_refused_where_they_do_not_fit():
    boxes = GridBoxes(10, 2, 6).boxes()
    assert boxes.tolist() == [[0, 0, 5, 5], [0, 5, 5, 10], [5, 0, 10, 5], [5, 5, 10, 10], [0, 0, 10, 10], [0] * 4]
    with pytest.raises(InputError, match="5 boxes"):
        GridBoxes(10, 2, 4)


# -- files beside weights ----------------------------------------------------------------------------------------------

OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "CLIP": st.fixed_dictionaries(
        {},
        optional={
            "size": st.sampled_from([{"shortest_edge": 20}, {"height": 17, "width": 23}]),
            "crop_size": st.sampled_from([{"height": 12, "width": 15}, {"height": 30, "width": 30}]),
            "do_center_crop": st.booleans(),
            "resample": st.sampled_from([0, 1, 2, 3, 4, 5]),
            "do_normalize": st.booleans(),
            "image_mean": st.just([0.1, 0.2, 0.3]),
            "do_resize": st.booleans(),
            "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
        },
    ),
    "ViT": st.fixed_dictionaries({}, optional={"size": st.just({"height": 9, "width": 14})}),
    "EfficientNet": st.fixed_dictionaries(
        {"size": st.just({"height": 21, "width": 19})},
        optional={
            "include_top": st.booleans(),
            "rescale_offset": st.booleans(),
            "rescale_factor": st.just(1 / 127.5),
            "do_normalize": st.booleans(),
            "do_center_crop": st.booleans(),
            "crop_size": st.just({"height": 11, "width": 12}),
        },
    ),
}


@pytest.mark.parametrize("kind", OPTIONS)
@given(data=st.data(), height=st.integers(8, 40), width=st.integers(8, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_file_of_transformers_gives_its_own_pixels(kind, data, height, width):
    options = data.draw(OPTIONS[kind])
    reference = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    said = json.loads(json.dumps(reference.to_dict()))
    picture = Image.fromarray(noise(height, width))
    wanted = torch.as_tensor(reference(picture, return_tensors="pt")["pixel_values"]).float()
    images = of_transformers(said, "here")
    whole = images.replace(crop=None).pixels(picture).shape[1:]
    if images.crop is None or (images.crop[0] <= whole[0] and images.crop[1] <= whole[1]):
        assert torch.allclose(images(picture), wanted, atol=2e-5 * max(1.0, float(wanted.abs().max())))
    else:  # a border, which the classes of transformers with and without torchvision place differently
        assert images(picture).shape == wanted.shape


def test_what_a_class_does_where_its_file_is_silent_is_what_transformers_does():
    for kind in KINDS:
        reference = json.loads(json.dumps(getattr(transformers, f"{kind}ImageProcessorPil")().to_dict()))
        silent = of_transformers({"image_processor_type": f"{kind}ImageProcessorFast"}, "here")
        assert of_transformers(reference, "here") == silent, kind


@pytest.mark.parametrize(
    "images",
    [
        Images(size=30, crop=24, crop_start="below"),
        Images(size=24, crop=24),
        Images(resize="exact", size=(20, 30), interpolation="bilinear", mean=HALF, std=HALF),
        Images(resize="exact", size=16, resizer="torch", antialias=False, interpolation="bilinear"),
        Images(resize="none", background=None, max_pixels=5000),
    ],
)
def test_what_is_written_is_read_back_and_transformers_reads_it_too(images, tmp_path):
    write_images(images, tmp_path)
    assert read_images(tmp_path) == images
    if images.resizer == "pillow" and images.crop_start == "below" and images.resize != "none":
        theirs = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
        picture = smooth(50, 41)
        wanted = torch.as_tensor(theirs(picture, return_tensors="pt")["pixel_values"])
        assert torch.allclose(images(picture), wanted, atol=2e-5)


def test_processor_config_of_transformers_5_is_read(tmp_path):
    said = to_transformers(Images(size=12, crop=12))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X", "image_processor": said}))
    assert read_images(tmp_path) == Images(size=12, crop=12)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"size": 224}, ConfigError, "names no image_processor_type"),
        ({"image_processor_type": "SamImageProcessor"}, UnknownNameError, "SamImageProcessor"),
        ({"image_processor_type": "CLIPImageProcessor", "do_flip": True}, UnknownNameError, "do_flip"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, ConfigError, "do_pad"),
        ({"image_processor_type": "CLIPImageProcessor", "resample": 9}, ConfigError, "resample = 9"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 8, "longest_edge": 9}},
            ConfigError,
            "longest_edge",
        ),
        ({"image_processor_type": "CLIPImageProcessor", "image_std": [0, 1, 1]}, ConfigError, "std must be"),
        ({"image_processor_type": "CLIPImageProcessor", "zoo": {"resiser": 1}}, UnknownNameError, "resiser"),
    ],
)
def test_a_step_that_is_not_known_is_refused_by_its_name(said, error, words):
    with pytest.raises(error, match=words):
        of_transformers(said, "preprocessor_config.json")


def test_open_clips_config_is_read():
    vision = {"model_cfg": {"vision_cfg": {"image_size": 32}}}
    assert of_open_clip(vision, "here") == Images(size=32, crop=32)
    given_ = {"size": [20, 30], "resize_mode": "squash", "interpolation": "bilinear", "mean": HALF, "std": HALF}
    exact = Images(resize="exact", size=(20, 30), interpolation="bilinear", mean=HALF, std=HALF)
    assert of_open_clip({**vision, "preprocess_cfg": given_}, "here") == exact
    for wrong in (
        {"resize_mode": "longest"},
        {"resize_mode": "shortest", "size": [20, 30]},
        {"flip": 1},
        {"mode": "L"},
    ):
        with pytest.raises(zoo.ZooError):
            of_open_clip({**vision, "preprocess_cfg": wrong}, "here")


def test_a_folder_without_such_a_file_says_nothing_and_a_broken_file_is_refused(tmp_path):
    assert read_images(tmp_path) is None
    with pytest.raises(InputError, match="nothing says how"):
        zoo.images(tmp_path)
    with pytest.raises(InputError, match="bert-tiny"):
        zoo.images("bert-tiny")
    Path(tmp_path / "preprocessor_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        zoo.images(tmp_path)


# -- networks of torchvision -------------------------------------------------------------------------------------------


def test_a_resnet_of_torchvision_gives_a_grid_of_regions():
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    regions = grid_regions(images, resnet_grid("resnet18"), size=None)
    assert (regions.features.shape, regions.detector) == ((2, 6, 512), "grid")
    assert regions.boxes[0, 1].tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0.5])


def test_a_picture_that_pillow_refuses_is_said_with_its_pixels():
    large = bytearray(content(Image.new("RGB", (1, 1))))
    large[16:24] = (20_000).to_bytes(4, "big") * 2  # the size in the header
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"has 400,000,000 pixels, more than the .* of max_pixels; .*max_pixels="):
        Images()(bytes(large))
    with pytest.raises(InputError, match=r"400,000,000 pixels, more than Pillow opens"):
        Images(max_pixels=10**9)(bytes(large))
