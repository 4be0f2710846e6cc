"""The Inception network beside one of loops, and checkpoints as PyTorch writes them, without PyTorch."""

import collections
import hashlib
import io
import math
import pickle
import struct
import sys
import types
import zipfile

import flax
import jax
import numpy as np
import pytest

from functa.evaluation import features, inception
from tools import convert_inception

KINDS = {"kernel", "scale", "bias", "mean", "variance"}


def random_weights(shapes, seed=0):
    random = np.random.default_rng(seed)

    def one(name, shape):
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            array = random.standard_normal(shape, np.float32) * np.sqrt(2 / math.prod(shape[:3]))
        elif kind in ("scale", "variance"):
            array = random.uniform(0.5, 1.5, shape)
        else:
            array = random.normal(0, 0.2, shape)
        return np.asarray(array, np.float32)

    return {name: one(name, shape) for name, shape in shapes.items()}


def convolved(weights, name, x, *, stride=1, padding=(0, 0)):
    """x [h, w, c]: convolution, normalisation and ReLU, by sums over the kernel's entries."""
    kernel, scale, bias, mean, variance = (
        weights[f"{name}/{kind}"] for kind in ("kernel", "scale", "bias", "mean", "variance")
    )
    (rows, columns), (below, beside) = kernel.shape[:2], padding
    x = np.pad(x, ((below, below), (beside, beside), (0, 0)))
    h, w = (x.shape[0] - rows) // stride + 1, (x.shape[1] - columns) // stride + 1
    total = np.zeros((h, w, kernel.shape[3]), np.float32)
    for row in range(rows):
        for column in range(columns):
            part = x[row : row + stride * h : stride, column : column + stride * w : stride]
            total += part[:h, :w] @ kernel[row, column]
    return np.maximum((total - mean) / np.sqrt(variance + 1e-3) * scale + bias, 0)


def pooled(x, how, *, stride, padding):
    """Of 3x3 windows; what lies outside does not count."""
    h, w = ((size + 2 * padding - 3) // stride + 1 for size in x.shape[:2])
    result = np.empty((h, w, x.shape[2]), np.float32)
    for row in range(h):
        for column in range(w):
            top, left = row * stride - padding, column * stride - padding
            window = x[max(top, 0) : top + 3, max(left, 0) : left + 3]
            result[row, column] = how(window, axis=(0, 1))
    return result


def reference_a(conv, x):
    return [
        conv("branch1x1", x),
        conv("branch5x5_2", conv("branch5x5_1", x), padding=(2, 2)),
        conv(
            "branch3x3dbl_3",
            conv("branch3x3dbl_2", conv("branch3x3dbl_1", x), padding=(1, 1)),
            padding=(1, 1),
        ),
        conv("branch_pool", pooled(x, np.mean, stride=1, padding=1)),
    ]


def reference_b(conv, x):
    double = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x), padding=(1, 1))
    return [
        conv("branch3x3", x, stride=2),
        conv("branch3x3dbl_3", double, stride=2),
        pooled(x, np.max, stride=2, padding=0),
    ]


def reference_c(conv, x):
    seven, double = conv("branch7x7_1", x), conv("branch7x7dbl_1", x)
    seven = conv("branch7x7_2", seven, padding=(0, 3))
    for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
        double = conv(f"branch7x7dbl_{number}", double, padding=padding)
    return [
        conv("branch1x1", x),
        conv("branch7x7_3", seven, padding=(3, 0)),
        double,
        conv("branch_pool", pooled(x, np.mean, stride=1, padding=1)),
    ]


def reference_d(conv, x):
    seven = conv("branch7x7x3_2", conv("branch7x7x3_1", x), padding=(0, 3))
    seven = conv("branch7x7x3_3", seven, padding=(3, 0))
    return [
        conv("branch3x3_2", conv("branch3x3_1", x), stride=2),
        conv("branch7x7x3_4", seven, stride=2),
        pooled(x, np.max, stride=2, padding=0),
    ]


def reference_e(how):
    def block(conv, x):
        three = conv("branch3x3_1", x)
        double = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x), padding=(1, 1))
        return [
            conv("branch1x1", x),
            conv("branch3x3_2a", three, padding=(0, 1)),
            conv("branch3x3_2b", three, padding=(1, 0)),
            conv("branch3x3dbl_3a", double, padding=(0, 1)),
            conv("branch3x3dbl_3b", double, padding=(1, 0)),
            conv("branch_pool", pooled(x, how, stride=1, padding=1)),
        ]

    return block


def joined(block, weights, prefix, x):
    def conv(name, x, **options):
        return convolved(weights, prefix + name, x, **options)

    return np.concatenate(block(conv, x), axis=-1)


def reference(weights, x):
    """The whole network: x [299, 299, 3] -> [2048]."""
    x = convolved(weights, "Conv2d_1a_3x3", x, stride=2)
    x = convolved(weights, "Conv2d_2a_3x3", x)
    x = convolved(weights, "Conv2d_2b_3x3", x, padding=(1, 1))
    x = pooled(x, np.max, stride=2, padding=0)
    x = convolved(weights, "Conv2d_4a_3x3", convolved(weights, "Conv2d_3b_1x1", x))
    x = pooled(x, np.max, stride=2, padding=0)
    assert x.shape == (35, 35, 192)
    blocks = {
        **dict.fromkeys(("5b", "5c", "5d"), reference_a),
        "6a": reference_b,
        **dict.fromkeys(("6b", "6c", "6d", "6e"), reference_c),
        "7a": reference_d,
        "7b": reference_e(np.mean),
        "7c": reference_e(np.max),
    }
    for name, block in blocks.items():
        x = joined(block, weights, f"Mixed_{name}/", x)
    assert x.shape == (8, 8, 2048)
    return x.mean(axis=(0, 1))


@pytest.mark.parametrize(
    ("module", "block"),
    [
        (inception.BlockA(pooled=7), reference_a),
        (inception.BlockB(), reference_b),
        (inception.BlockC(width=9), reference_c),
        (inception.BlockD(), reference_d),
        (inception.BlockE(pools_maximum=False), reference_e(np.mean)),
        (inception.BlockE(pools_maximum=True), reference_e(np.max)),
    ],
)
@pytest.mark.parametrize("size", [(6, 7), (7, 6)])
def test_blocks_are_those_of_loops(module, block, size):
    images = np.random.default_rng(1).normal(size=(2, *size, 5)).astype(np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    weights = random_weights({name: leaf.shape for name, leaf in flat.items()})
    params = flax.traverse_util.unflatten_dict(weights, sep="/")
    got = jax.jit(module.apply)({"params": params}, images)
    expected = np.stack([joined(block, weights, "", image) for image in images])
    assert np.mean(expected > 0) > 0.2
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_network_has_the_published_size():
    """94 convolutions; 21,785,568 kernels, scales and biases: torchvision's inception_v3 has 27,161,264
    parameters, 3,326,696 of them in its auxiliary and 2,049,000 in its last classifier."""
    shapes = inception.shapes()
    assert len(shapes) == 94 * 5
    layers = collections.defaultdict(set)
    for name in shapes:
        layer, _, kind = name.rpartition("/")
        layers[layer].add(kind)
    assert len(layers) == 94
    assert all(kinds == KINDS for kinds in layers.values())
    trained = [
        math.prod(shape)
        for name, shape in shapes.items()
        if name.endswith(("/kernel", "/scale", "/bias"))
    ]
    assert sum(trained) == 21_785_568 == 27_161_264 - 3_326_696 - 2_049_000


def test_widths_that_the_count_does_not_tell_apart():
    """Of torchvision's table: channels of the pools in 5, of the 7x7 in 6, and what the last blocks are given."""
    shapes = inception.shapes()
    widths = {letter: shapes[f"Mixed_6{letter}/branch7x7_1/kernel"][2:] for letter in "bcde"}
    assert widths == {"b": (768, 128), "c": (768, 160), "d": (768, 160), "e": (768, 192)}
    pools = {letter: shapes[f"Mixed_5{letter}/branch_pool/kernel"][2:] for letter in "bcd"}
    assert pools == {"b": (192, 32), "c": (256, 64), "d": (288, 64)}
    assert shapes["Mixed_7b/branch1x1/kernel"] == (1, 1, 1280, 320)
    assert shapes["Mixed_7c/branch3x3dbl_2/kernel"] == (3, 3, 448, 384)


def slow_resize(image, side):
    """Bilinear between pixel centres, and constant beyond the outermost."""

    def weights(position, size):
        centre = np.clip((position + 0.5) * size / side - 0.5, 0, size - 1)
        return np.maximum(1 - np.abs(np.arange(size) - centre), 0)

    result = np.empty((side, side, image.shape[2]))
    for row in range(side):
        for column in range(side):
            down, across = weights(row, image.shape[0]), weights(column, image.shape[1])
            result[row, column] = np.einsum("i,j,ijc->c", down, across, image)
    return result


@pytest.mark.parametrize("size", [(8, 5), (31, 32)])
def test_images_are_rounded_resized_and_scaled(monkeypatch, size):
    monkeypatch.setattr(inception, "SIDE", 20)
    images = np.random.default_rng(0).random((2, *size, 3), np.float32)
    got = jax.jit(inception.prepare)(images)
    expected = [slow_resize(np.rint(image * 255) / 255, 20) for image in images]
    np.testing.assert_allclose(got, 2 * np.array(expected) - 1, atol=1e-5)


# Files as PyTorch writes them: its classes are imitated by name.


class FakeStorage:
    def __init__(self, key, array):
        self.key, self.array = key, array


@pytest.fixture
def torch(monkeypatch):
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "Size"):
        setattr(module, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("the reader must not call this")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return module


class FakeTensor:
    def __init__(self, key, array, *, offset=0, size=None, stride=None):
        self.storage = FakeStorage(key, np.ascontiguousarray(array).ravel())
        self.offset = offset
        self.size = array.shape if size is None else size
        default = tuple(np.empty(self.size, np.uint8).strides)
        self.stride = default if stride is None else stride

    def __reduce__(self):
        utils = sys.modules["torch._utils"]
        view = (self.storage, self.offset, self.size, self.stride)
        return utils._rebuild_tensor_v2, (*view, False, collections.OrderedDict())


def pickled(state, torch, *, older, view):
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, FakeStorage):
                return None
            storages[obj.key] = obj.array
            kind = torch.LongStorage if obj.array.dtype == np.int64 else torch.FloatStorage
            return ("storage", kind, obj.key, "cpu", obj.array.size, *[view] * older)

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(state)
    return file.getvalue(), storages


def saved(state, torch, *, older, order="little", view=None):
    """As torch.save writes it: before 1.6, and since."""
    held = collections.OrderedDict(state)
    held._metadata = collections.OrderedDict({"": {"version": 1}})
    data, storages = pickled(held, torch, older=older, view=view)
    file = io.BytesIO()
    if older:
        system = {"protocol_version": 1001, "little_endian": order == "little", "type_sizes": {}}
        for each in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(each, protocol=2))
        file.write(data)
        file.write(pickle.dumps(sorted(storages), protocol=2))
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", order)
            for key, array in storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("older", [True, False])
def test_checkpoints_of_both_forms_are_read(torch, older):
    random = np.random.default_rng(0)
    arrays = {
        "a": random.normal(size=(2, 3, 1, 5)).astype(np.float32),
        "b": random.normal(size=7).astype(np.float32),
        "c": np.array(2**40),
    }
    state = {name: FakeTensor(str(key), array) for key, (name, array) in enumerate(arrays.items())}
    state["part"] = FakeTensor("9", np.arange(20, dtype=np.float32), offset=3, size=(2, 5))
    # The stride of an axis of one entry means nothing.
    state["one"] = FakeTensor("8", np.ones((4, 1), np.float32), stride=(1, 77))
    got = convert_inception.read_checkpoint(saved(state, torch, older=older))
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got["part"], np.arange(3, 13).reshape(2, 5))
    assert got["one"].shape == (4, 1)


@pytest.mark.parametrize("older", [True, False])
def test_other_pickles_run_nothing(torch, older, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    with pytest.raises(ValueError, match="asks for .*open, which weights never do"):
        convert_inception.read_checkpoint(saved({"a": Evil()}, torch, older=older))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    ("view", "told"),
    [
        ({"size": (3, 7)}, r"a tensor \(3, 7\) at 0 of 20 numbers"),
        ({"offset": 1}, "at 1 of 20"),
        ({"offset": -5, "size": (2,)}, "at -5 of 20"),
        ({"size": (4, 5), "stride": (1, 4)}, r"strides \(1, 4\)"),
    ],
)
def test_views_that_are_not_there_are_told(torch, older, view, told):
    tensor = FakeTensor("0", np.zeros(20, np.float32), **view)
    with pytest.raises(ValueError, match=told):
        convert_inception.read_checkpoint(saved({"a": tensor}, torch, older=older))


def test_a_storage_that_is_part_of_another_is_told(torch):
    state = {"a": FakeTensor("0", np.zeros(20, np.float32))}
    with pytest.raises(ValueError, match="a storage of an unknown form"):
        convert_inception.read_checkpoint(saved(state, torch, older=True, view=("1", 0, 20)))


@pytest.mark.parametrize("older", [True, False])
def test_damaged_and_foreign_files_are_told(torch, older):
    state = {"a": FakeTensor("0", np.zeros(200, np.float32))}
    whole = saved(state, torch, older=older)
    for data, told in (
        (whole[:-8], "numbers in place of" if older else ""),
        (b"", ""),
        (pickle.dumps(17), "does not begin as one"),
        (saved(state, torch, older=older, order="big"), "byte order"),
        (saved({"a": 3}, torch, older=older), "int"),
    ):
        with pytest.raises(ValueError, match=f"no checkpoint of tensors: .*{told}"):
            convert_inception.read_checkpoint(data)


def checkpoint(weights):
    """The state of the PyTorch network that has these weights."""
    names = {kind: name for name, kind in convert_inception._NAMES.items()}
    state = {
        "fc.weight": np.zeros((1008, 2048), np.float32),
        "fc.bias": np.zeros(1008, np.float32),
        "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0),
    }
    for name, array in weights.items():
        layer, _, kind = name.rpartition("/")
        array = array.transpose(3, 2, 0, 1) if kind == "kernel" else array
        state[f"{layer.replace('/', '.')}.{names[kind]}"] = array
    return state


def test_names_are_those_of_the_checkpoint():
    names = checkpoint(random_weights({"Mixed_5b/branch1x1/kernel": (1, 1, 192, 64)}))
    assert names["Mixed_5b.branch1x1.conv.weight"].shape == (64, 192, 1, 1)


def test_tensors_of_other_networks_are_told():
    state = checkpoint({name: np.zeros(shape, "f4") for name, shape in inception.shapes().items()})
    for changed, told in (
        ({"extra.conv.bias": np.zeros(3, "f4")}, r"extra\.conv\.bias is no tensor of this"),
        ({"layer": np.zeros(3, "f4")}, "layer is no tensor"),
        ({"x.conv.weight": np.zeros((1, 1, 1, 1), "f4")}, "x/kernel is not known"),
        ({"Mixed_7c.branch1x1.bn.bias": np.zeros(3, "f4")}, r"1 tensors do not fit: .* \[3\], not"),
        ({"Mixed_7c.branch1x1.bn.bias": np.full(320, np.nan, "f4")}, "bias holds numbers that"),
        ({"Mixed_7c.branch1x1.bn.bias": np.zeros(320)}, r"bias is float64 \[320\], not float32"),
    ):
        with pytest.raises(ValueError, match=told):
            convert_inception.convert({**state, **changed})
    del state["Mixed_6a.branch3x3.bn.running_var"]
    with pytest.raises(ValueError, match=r"1 tensors .* Mixed_6a/branch3x3/variance is missing"):
        convert_inception.convert(state)


def test_from_a_checkpoint_to_features(torch, tmp_path, monkeypatch, capsys):
    weights = random_weights(inception.shapes())
    state = {name: FakeTensor(name, array) for name, array in checkpoint(weights).items()}
    data = saved(state, torch, older=True)
    source = tmp_path / f"pt_inception-2015-12-05-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    source.write_bytes(data)
    out = tmp_path / "inception.npz"
    assert convert_inception.main([str(source), str(out)]) == 0
    assert "470 arrays" in capsys.readouterr().out
    monkeypatch.setattr(inception, "_AT_ONCE", 1)
    extractor = inception.extractor(out)
    assert isinstance(extractor, features.Extractor)
    assert extractor.name == "inception"
    image = np.random.default_rng(0).random((1, 8, 5, 1), np.float32)
    got = extractor.extract(image)
    assert (got.shape, got.dtype) == ((1, 2048), np.float32)
    resized = np.asarray(jax.jit(inception.prepare)(image))[0]
    np.testing.assert_allclose(got[0], reference(weights, resized), rtol=1e-3, atol=1e-3)
    for images, told in (
        (np.zeros((1, 8, 8, 2), np.float32), r"must be \[n, h, w, 1 or 3\], not \[1, 8, 8, 2\]"),
        (np.zeros((0, 8, 8, 3), np.float32), r"not \[0, 8, 8, 3\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), "not uint8"),
    ):
        with pytest.raises(ValueError, match=told):
            extractor.extract(images)


def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path, capsys):
    source = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    source.write_bytes(b"something else")
    with pytest.raises(SystemExit) as stopped:
        convert_inception.main([str(source), str(tmp_path / "out.npz")])
    assert stopped.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "its SHA-256 begins with f41f3fa6, not with 6726825d as its name says" in told
    assert not (tmp_path / "out.npz").exists()


def test_weights_that_are_not_there_or_do_not_fit_are_told(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.raises(
        ValueError, match=r"no Inception weights at .*w\.npz; tools/convert_inception"
    ):
        inception.extractor(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match=r"w\.npz has 471 arrays that do not fit: .* is missing"):
        inception.extractor(path)
    np.savez(path, a=np.array([{}]))
    with pytest.raises(ValueError, match="no whole .npz file"):
        inception.extractor(path)
    for data in (b"", b"PK something", path.read_bytes()[:-30]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="no whole .npz file"):
            inception.extractor(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="no whole .npz file"):
        inception.extractor(path)
