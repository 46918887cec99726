"""Labels, arrays, pictures and folders as people have them: read right, or refused by the name of what is wrong."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.cli import stats
from fewstep.data import Images, levels as scale, npz, read_images
from fewstep.model.record import class_labels, class_numbers
from fewstep.quality.__main__ import read as read_both

Image = pytest.importorskip("PIL.Image")

X = np.random.default_rng(0).integers(0, 256, (6, 8, 5)).astype(np.uint8)
X[0, 0, :2] = 0, 255
RGB = np.random.default_rng(1).integers(0, 256, (6, 8, 5, 3)).astype(np.uint8)
Y = np.arange(6) % 3


def stored(folder: Path, **arrays: object) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# Labels


@pytest.mark.parametrize(
    "given",
    [
        *(Y.astype(d) for d in ("i1", "u1", "<i2", ">i4", "i8", "u8", "f2", "f4", "f8")),
        Y[:, None],
        Y[None],
        Y[:, None, None].astype(float),
        np.eye(3, dtype=int)[Y],
        np.eye(3, dtype="f4")[Y],
        np.eye(3, dtype=bool)[Y],
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_labels_of_every_dtype_and_shape_are_read(tmp_path: Path, given: np.ndarray) -> None:
    found = read_images(stored(tmp_path, x_train=X, y_train=given))
    assert found.labels is not None
    assert found.labels.tolist() == Y.tolist()
    assert found.labels.dtype == np.int64
    assert found.names == ("0", "1", "2")


def test_bool_labels_and_labels_far_apart_are_the_classes_that_occur(tmp_path: Path) -> None:
    for given, names in ((Y == 1, ("0", "1")), ((Y == 1) * 1000, ("0", "1000")), (Y + 1, ("1", "2", "3"))):
        found = read_images(stored(tmp_path, x_train=X, y_train=given))
        assert found.names == names
        assert found.labels is not None
        assert [int(names[k]) for k in found.labels] == given.tolist()


def test_an_unused_column_of_one_hot_labels_is_a_class(tmp_path: Path) -> None:
    found = read_images(stored(tmp_path, x_train=X, y_train=np.eye(5)[Y + 1]))
    assert found.names == ("0", "1", "2", "3", "4")
    assert found.labels is not None
    assert found.labels.tolist() == (Y + 1).tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Y[:-1], r"shape \(5,\) for 6 pictures"),
        (np.r_[Y, 0], r"shape \(7,\)"),
        (np.array(0), r"shape \(\)"),
        (np.stack([Y, Y], 1), "not one 1 among zeros"),
        (np.eye(3)[Y] * 0.9, "0.9"),
        (np.array(list("abcabc")), "<U1, no numbers"),
        (np.array([b"a"] * 6), r"\|S1, no numbers"),
        (np.array([None] * 6), "pickled objects|Object arrays"),
        (Y.astype(complex), "complex128, no numbers"),
        (Y.astype("M8[s]"), "no numbers"),
        (Y + 0.5, "holds 0.5"),
        (np.where(Y == 1, np.nan, Y), "holds nan"),
        (np.where(Y == 1, np.inf, Y), "holds inf"),
        (Y - 1, "a label -1"),
        (-Y.astype(float), "a label -2"),
    ],
)
def test_labels_that_are_none_are_refused_by_name(tmp_path: Path, given: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        read_images(stored(tmp_path, x_train=X, y_train=given))
    assert "y_train" in str(refused.value) or "pickle" in str(refused.value)


def test_class_names_name_the_numbers_from_zero(tmp_path: Path) -> None:
    found = read_images(stored(tmp_path, x_train=X, y_train=Y * 2, class_names=np.array(list("abcdef"))))
    assert found.names == tuple("abcdef")
    assert found.labels is not None
    assert found.labels.tolist() == (Y * 2).tolist()
    for names in (["a", "b"], ["a", "a", "b"], [["a", "b", "c"]], [1, 2, 3]):
        with pytest.raises(ValueError, match="class_names"):
            read_images(stored(tmp_path, x_train=X, y_train=Y, class_names=np.array(names)))


def test_too_many_classes_are_refused() -> None:
    from fewstep.data.npz import MOST_CLASSES, classes

    many = np.arange(MOST_CLASSES + 1)
    with pytest.raises(ValueError, match=r"at most 100,000 classes"):
        classes(many, len(many), "y")


def test_a_class_is_chosen_by_its_name_before_its_number() -> None:
    assert class_labels("10,2,3", ("0", "1", "10", "2"), 3) == [2, 3, 3]
    assert class_labels(None, ("1", "2", "3"), 4) == [0, 1, 2, 0]  # each class, whatever the names
    assert class_numbers(["SHIRT", "bag", "0", "1"], ("Shirt", "Bag"), "label") == [0, 1, 0, 1]
    assert class_numbers(["A", "a", "B"], ("A", "a", "b"), "label") == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "model", "expected"),
    [
        (Y, ("coat", "bag", "boot"), Y.tolist()),
        (Y * 2, ("coat", "bag", "boot", "hat", "shoe"), (Y * 2).tolist()),
        (Y + 1, ("1", "2", "3"), Y.tolist()),
        (Y, (), None),
    ],
)
def test_statistics_match_the_classes_of_data_with_the_model_s(tmp_path: Path, labels, model, expected) -> None:
    args = Namespace(data=str(stored(tmp_path, x=X, y=labels)), seed=0, samples=6)
    images, numbers = stats._data(SimpleNamespace(shape=(1, 8, 5), labels=model), args)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(6)
    assert numbers == (expected and [expected[k] for k in order])
    np.testing.assert_array_equal(images.numpy(), (X[order].astype(np.float32) / 127.5 - 1)[:, None])


def test_statistics_of_a_class_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    args = Namespace(data=str(stored(tmp_path, x=X, y=Y + 3)), seed=0, samples=6)
    with pytest.raises(ValueError, match=r"label in .*a.npz '3'"):
        stats._data(SimpleNamespace(shape=(1, 8, 5), labels=("coat", "bag", "boot")), args)  # type: ignore[arg-type]


# Names of arrays


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("x_train", "y_train"),
        ("X_train", "Y_train"),
        ("xtrain", "ytrain"),
        ("train_images", "train_labels"),
        ("trainImages", "trainLabels"),
        ("x", "y"),
        ("images", "labels"),
        ("data", "target"),
        ("imgs", "fine_labels"),
        ("arr_0", "arr_1"),
        ("pixels", "what"),
        ("anything", "class"),
        ("x_train", "y"),
        ("x", "y_train"),
    ],
)
def test_arrays_are_found_by_the_names_people_use(tmp_path: Path, x: str, y: str) -> None:
    more = {"x_test": X[:2], "y_test": Y[:2]}
    found = read_images(stored(tmp_path, **more, **{y: Y, x: X}))
    assert found.labels is not None
    assert found.labels.tolist() == Y.tolist()
    np.testing.assert_array_equal(found.images, X)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "b": X}, "more than one"),
        ({"images": X, "x": X}, "more than one"),
        ({"x": X, "fine_labels": Y, "coarse_labels": Y}, "may be the labels"),
        ({"x": X, "a": Y, "b": Y}, "may be the labels"),
        ({"x_train": X.reshape(6, -1), "x_test": X}, "x_train uint8"),
        ({"x_train": X.astype(complex)}, "x_train complex"),
        ({"x": np.zeros(3)}, "images are a uint8 array"),
        ({}, "no arrays"),
    ],
)
def test_arrays_that_may_mean_several_things_are_refused(tmp_path: Path, arrays: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_images(stored(tmp_path, **arrays))


def test_a_file_of_the_test_split_alone_is_read(tmp_path: Path) -> None:
    found = read_images(stored(tmp_path, x_test=X, y_test=Y))
    assert found.labels is not None
    assert found.labels.tolist() == Y.tolist()


def test_numbers_of_the_pictures_are_no_labels(tmp_path: Path) -> None:
    assert read_images(stored(tmp_path, x=X, index=np.arange(6))).labels is None


def test_the_test_split_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    path = stored(tmp_path, x_train=X, y_train=Y, x_test=X[::-1], y_test=Y[::-1, None].astype(float))
    found = read_images(path, split="test")
    np.testing.assert_array_equal(found.images, X[::-1])
    both = read_both(path)
    assert both["y_test"].tolist() == Y[::-1].tolist()
    with pytest.raises(ValueError, match="classes"):
        read_both(stored(tmp_path, x_train=X, y_train=Y, x_test=X, y_test=Y * 0))
    with pytest.raises(ValueError, match="no labels for x_test"):
        read_both(stored(tmp_path, x_train=X, y_train=Y, x_test=X))
    for where, split in ((path, "val"), (tmp_path, "test")):
        with pytest.raises(ValueError, match="split"):
            read_images(where, split=split)


# Scales and layouts of arrays


@pytest.mark.parametrize(
    "given",
    [
        X,
        *(X.astype(d) for d in ("i2", ">u2", "i8", "u8", "f4", "f8")),
        X.astype(np.uint16) * 257,
        X.astype(np.int64) * 257,
        X.astype(np.uint16) * 256 + 128,
        *((X / 255).astype(d) for d in ("f2", "f4", "f8")),
        *((X / 127.5 - 1).astype(d) for d in ("f4", "f8")),
        np.asfortranarray(X),
    ],
    ids=lambda a: f"{a.dtype}-{a.ravel()[1]:.5g}",
)
def test_scales_of_every_dtype_are_read(tmp_path: Path, given: np.ndarray) -> None:
    np.testing.assert_array_equal(read_images(stored(tmp_path, x=given)).images, X)


def test_large_arrays_are_converted_in_parts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scale, "AT_ONCE", 50)
    np.testing.assert_array_equal(read_images(stored(tmp_path, x=X / 255)).images, X)
    np.testing.assert_array_equal(read_images(stored(tmp_path, x=X > 127)).images, (X > 127) * 255)


@pytest.mark.parametrize(
    "given",
    [
        (X > 127).astype(np.uint8),
        X.astype(int) - 128,
        X.astype(int) * 300,
        X.astype(int) // 16,
        X.astype(np.uint16) * 16,
        X / 255 * 2.5,
        X / 255 - 0.5,
        X / 100 - 1.2,
        X.astype(float) / 7,
        np.where(X > 250, np.nan, X / 255),
        np.where(X > 250, np.inf, X / 255),
        X * 0.0,
    ],
    ids=lambda a: f"{a.dtype}-{a.min():.3g}-{a.max():.3g}",
)
def test_scales_that_cannot_be_told_are_refused(tmp_path: Path, given: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a.npz: x: .* a scale that cannot be told"):
        read_images(stored(tmp_path, x=given))


def test_channels_may_come_first(tmp_path: Path) -> None:
    for last in (RGB, RGB[..., :1], np.concatenate([RGB, RGB[..., :1]], 3), RGB[:, :4, :4]):
        found = read_images(stored(tmp_path, x=np.moveaxis(last, 3, 1)))
        np.testing.assert_array_equal(found.images, last)
        np.testing.assert_array_equal(read_images(stored(tmp_path, x=last)).images, last)


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 8, 8, 3), (2, 0, 8), (2, 8, 8, 2), (2, 5, 8, 8), (2, 3, 8, 0)])
def test_shapes_that_are_no_pictures_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x_train holds images of shape .* N >= 1"):
        read_images(stored(tmp_path, x_train=np.zeros(shape, np.uint8), y_train=np.zeros(shape[0])))


def test_images_are_whole_wherever_they_come_from() -> None:
    good = {"images": X, "labels": Y, "names": ("a", "b", "c"), "source": "x"}
    assert Images(**good).shape == (1, 8, 5)
    for wrong in (
        {"images": X.astype(float)},
        {"images": X[0]},
        {"images": X[:0]},
        {"images": np.repeat(X[..., None], 2, 3)},
        {"labels": Y[:-1]},
        {"labels": Y / 1.0},
        {"labels": Y - 1},
        {"names": ("a", "b")},
        {"labels": None},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("names", "labels")):
            Images(**(good | wrong))


# Files: bounded before they are read


def member(shape: str, size: int, *, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * size


def test_what_an_array_says_of_itself_is_held_against_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content, words in (
        (member("(1000000, 1000, 1000)", 64), "has 1[0-9]{2} bytes"),
        (member("(1, 8, 8)", 63), "has"),
        (member("(1, 8, 8)", 65), "has"),
        (member("(-1, -8, 8)", 64), "has"),
        (member("(1, 8, 8)", 64)[:20], "not a readable npz"),
        (member("(1, 8, 8" + " " * 20_000 + ")", 64), "not a readable npz"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 64, "not a readable npz"),
        (member("(" * 3000 + ")" * 3000, 64), "not a readable npz"),
        (member("(8, 8, 8)", 4096, descr="'|O'"), "never loaded"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
        with pytest.raises(ValueError, match=words):
            read_images(path)


def test_bombs_and_odd_archives_are_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.npz"
    monkeypatch.setattr(npz, "SMALL", 2**16)
    np.savez_compressed(path, x=np.zeros((2**8, 2**9, 1), np.uint8))
    with pytest.raises(ValueError, match="unpacks from [0-9,]* bytes to 131,072"):
        read_images(path)
    np.savez(path, x=X)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", b"")
    with pytest.raises(ValueError, match="two arrays of one name"):
        read_images(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", member("(1, 8, 8)", 64))
    with pytest.raises(ValueError, match="as numpy never packs"):
        read_images(path)
    np.savez(path, **{f"a{k}": X[:1] for k in range(npz.MOST_MEMBERS + 1)})
    with pytest.raises(ValueError, match="1001 arrays; at most 1000"):
        read_images(path)


def test_more_than_the_machine_holds_is_refused(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(X[0]).save(tmp_path / "a.png")
    path = stored(tmp_path, x=X)
    monkeypatch.setattr(scale, "physical_memory", lambda: 39)
    with pytest.raises(ValueError, match="a.npz: x take"):
        read_images(path)
    path.unlink()
    with pytest.raises(ValueError, match="the 1 pictures of"):
        read_images(tmp_path)


def test_changed_bytes_are_seen(tmp_path: Path) -> None:
    path = stored(tmp_path, x=X)
    raw = bytearray(path.read_bytes())
    raw[raw.index(X[3].tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="not a readable npz .*CRC"):
        read_images(path)
    path.write_bytes(raw[:-30])
    with pytest.raises(ValueError, match="not a readable npz"):
        read_images(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            read_images(path)
    with pytest.raises(ValueError, match=r"pipe.npz is no regular file"):
        read_images(tmp_path)
    (tmp_path / "pipe.npz").unlink()
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"a.png is no regular file"):
        read_images(tmp_path)


# Pictures


def picture(path: Path, array: np.ndarray = X[0], **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


DEEP = X[0].astype(np.uint16) * 257
OPAQUE, CLEAR = (np.dstack([RGB[0], np.full((8, 5), a, np.uint8)]) for a in (255, 254))


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("a.png", lambda: Image.fromarray(X[0]), {}, X[0]),
        ("a.PNG", lambda: Image.fromarray(RGB[0]), {}, RGB[0]),
        ("a", lambda: Image.fromarray(RGB[0]), {"format": "PNG"}, RGB[0]),
        ("a.tif", lambda: Image.fromarray(RGB[0]), {}, RGB[0]),
        ("a.TIFF", lambda: Image.fromarray(X[0]), {"compression": "tiff_lzw"}, X[0]),
        ("a.bmp", lambda: Image.fromarray(RGB[0]), {}, RGB[0]),
        ("a.ppm", lambda: Image.fromarray(RGB[0]), {}, RGB[0]),
        ("a.tga", lambda: Image.fromarray(RGB[0]), {}, RGB[0]),
        ("a.webp", lambda: Image.fromarray(RGB[0]), {"lossless": True}, RGB[0]),
        ("a.png", lambda: Image.fromarray(DEEP), {}, X[0]),
        ("a.tiff", lambda: Image.fromarray(DEEP.astype(">u2")), {}, X[0]),
        ("a.tiff", lambda: Image.fromarray(DEEP.astype(np.int32)), {}, X[0]),
        ("a.tiff", lambda: Image.fromarray((X[0] / 255).astype(np.float32)), {}, X[0]),
        ("a.tiff", lambda: Image.fromarray((X[0] / 127.5 - 1).astype(np.float32)), {}, X[0]),
        ("a.png", lambda: Image.fromarray(X[0] > 127), {}, (X[0] > 127) * 255),
        ("a.png", lambda: Image.fromarray(X[0]).convert("P"), {}, np.dstack([X[0]] * 3)),
        ("a.png", lambda: Image.fromarray(X[0]).convert("P"), {"transparency": b"\xff" * 256}, np.dstack([X[0]] * 3)),
        ("a.png", lambda: Image.fromarray(X[0] // 2), {"transparency": 200}, X[0] // 2),
        ("a.png", lambda: Image.fromarray(X[0]).convert("LA"), {}, X[0]),
        ("a.png", lambda: Image.fromarray(OPAQUE), {}, RGB[0]),
        ("a.tiff", lambda: Image.fromarray(RGB[0]).convert("CMYK"), {}, RGB[0]),
    ],
)  # fmt: skip
def test_pictures_of_every_mode_are_read(
    tmp_path: Path, name: str, image: Callable, options: dict, expected: np.ndarray
) -> None:
    image().save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_images(tmp_path).images[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_data_say(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {1: X[0], 2: X[0][:, ::-1], 3: X[0][::-1, ::-1], 4: X[0][::-1], 5: X[0].T, 6: X[0][::-1].T,
               7: X[0][::-1, ::-1].T, 8: X[0].T[::-1]}[orientation]  # fmt: skip
    for name, options in (("a.png", {}), ("b.tiff", {"compression": "tiff_lzw"})):
        picture(tmp_path / name, exif=exif, **options)
    found = read_images(tmp_path).images
    np.testing.assert_array_equal(found, [upright, upright])
    picture(tmp_path / "c.tiff", exif=exif)
    if orientation < 5:
        np.testing.assert_array_equal(read_images(tmp_path).images[2], upright)
    else:
        with pytest.raises(ValueError, match=r"c.tiff is an uncompressed TIFF turned"):
            read_images(tmp_path)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda d: picture(d / "b.png", CLEAR), "transparent"),
        (lambda d: picture(d / "b.png", np.dstack([X[0], X[0]])), "transparent"),
        (lambda d: picture(d / "b.png", transparency=int(X[0, 0, 0])), "transparent"),
        (lambda d: picture(d / "b.png", RGB[0], transparency=tuple(RGB[0, 0, 0].tolist())), "transparent"),
        (lambda d: Image.fromarray(X[0]).convert("P").save(d / "b.png", transparency=int(X[0, 0, 0])), "transparent"),
        (lambda d: picture(d / "b.png", DEEP), "a.png is grey, .*b.png is 16-bit"),
        (lambda d: picture(d / "b.tiff", X[0].astype(np.float32)), "b.tiff is float"),
        (lambda d: picture(d / "b.gif", save_all=True, append_images=[Image.fromarray(X[1])]), "2 pictures"),
        (lambda d: picture(d / "b.png", save_all=True, append_images=[Image.fromarray(X[1])]), "2 pictures"),
        (lambda d: picture(d / "b.tiff", save_all=True, append_images=[Image.fromarray(X[1])]), "2 pictures"),
        (lambda d: picture(d / "b.png", X[0, :7]), "b.png has shape .* one size"),
        (lambda d: picture(d / "b.png", X[0].T), "b.png has shape .* one size"),
        (lambda d: picture(d / "b.eps", RGB[0]), "b.eps is not a readable picture"),
        (lambda d: picture(d / "b.pdf", RGB[0]), "b.pdf is not a readable picture"),
        (lambda d: (d / "b.heic").write_bytes(b"heic"), "b.heic is not a readable picture"),
        (lambda d: (d / "b").write_bytes(b""), "b is not a readable picture"),
        (lambda d: (d / "b.png").write_bytes((d / "a.png").read_bytes()[:60]), "b.png is not a readable picture"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, save: Callable, words: str) -> None:
    picture(tmp_path / "a.png")
    save(tmp_path)
    with pytest.raises(ValueError, match=words) as refused:
        read_images(tmp_path)
    assert "b" in Path(str(refused.value).replace("a.png is grey, ", "").split()[0]).name


def test_sixteen_bits_that_use_twelve_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", X[0].astype(np.uint16) * 16)
    with pytest.raises(ValueError, match="a scale that cannot be told"):
        read_images(tmp_path)


def test_grey_pictures_among_coloured_ones_become_coloured(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", RGB[0])
    np.testing.assert_array_equal(read_images(tmp_path).images, [np.dstack([X[0]] * 3), RGB[0]])


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_a_picture_that_says_it_is_huge_is_refused(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    with pytest.raises(ValueError, match=r"x.png .*pixels"):
        read_images(tmp_path)


# Folders


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat/a.png", "dog/a.png", "a.png"), "a.png lies beside folders"),
        (("cat/a.png", "dog/a.png", "cat/more/b.png"), "b.png lies deeper"),
        (("cat/a.png", "dog/more/b.png"), "b.png lies deeper"),
        (("train/cat/a.png", "train/dog/a.png"), "a.png lies deeper"),
        (("a.png", "cat/more/b.png"), "b.png lies deeper"),
        (("cat/a.png", "dog/"), "dog holds no pictures"),
        (("cat/a.png", "dog/labels.csv"), "dog holds no pictures"),
        (("cat/a.png", ".ipynb_checkpoints/a.png"), ".ipynb_checkpoints is hidden"),
        (("cat/a.png", "__MACOSX/cat/a.png"), "__MACOSX is hidden"),
        (("cat/a.png", "a\nb/a.png"), "cannot be printed"),
        (("a.png/",), "holds no pictures"),
        ((), "holds no pictures"),
    ],
    ids=str,
)
def test_folders_of_other_shapes_are_refused_by_the_name_of_what_would_be_lost(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    for name in names:
        if name.endswith(".png"):
            picture(tmp_path / name)
        elif name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=words):
        read_images(tmp_path)


def test_notes_junk_and_links_lie_beside_pictures(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/.b.png", "dog/c.JPG"):
        picture(tmp_path / name)
    for name in ("cat/a.txt", "cat/.DS_Store", "dog/Thumbs.db", "labels.csv", "metadata.jsonl", "README.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "dog/._c.JPG").write_bytes(b"\0\5\x16\7 finder")
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".git" / "objects" / "ab12").write_bytes(b"")
    (tmp_path / "dog" / "link.png").symlink_to(tmp_path / "cat" / "a.png")
    (tmp_path / "linked").symlink_to(tmp_path / "cat")
    found = read_images(tmp_path)
    assert found.names == ("cat", "dog", "linked")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="lies deeper"):
        read_images(tmp_path)
    (tmp_path / "cat" / "up").unlink()
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
    with pytest.raises(ValueError, match="self is no regular file"):
        read_images(tmp_path)


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "pictures" / "a.png")
    assert read_images("~/pictures").source == "pictures"


def test_writing_to_memory_is_how_a_picture_without_a_name_is_told(tmp_path: Path) -> None:
    raw = io.BytesIO()
    Image.fromarray(X[0]).save(raw, "PNG")
    (tmp_path / "0001.data").write_bytes(raw.getvalue())
    np.testing.assert_array_equal(read_images(tmp_path).images[0], X[0])
