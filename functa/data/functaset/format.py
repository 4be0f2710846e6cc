"""The format of a functaset: file names, the layout of a record, quantization of latents.

A record is a `tf.train.Example`, so that TFDS can read it. All records of a functaset have the same
length and the same bytes except for the values: integers are stored as protobuf varints of a fixed
width, with leading groups of zeros, which protobuf parsers accept. So packing and unpacking thousands
of records is one NumPy view, and no record is parsed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

FORMAT_VERSION = 4
NAME = "functaset"
MANIFEST = "manifest.json"
# Files that TFDS reads; the last one exists if the class names are known.
METADATA = ("dataset_info.json", "features.json", "label.labels.txt")
SPLITS = ("train", "validation", "test")

# dtype of the latents -> dtype in a record. bfloat16 is stored as its bits: NumPy supports it only after
# an import of ml_dtypes, and TFDS then needs TensorFlow.
STORAGE_DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int8": "|i1"}

_VARINT_WIDTHS = {"label": 10, "id": 7, "copy": 3}  # groups of 7 bits; 10 groups hold any int64
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"  # field tags of tf.train.Feature


def quantize(latents: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rounds latents to the dtype in which they are stored.

    int8 is symmetric, latents = stored * scale, with a scale per record and channel. It needs no
    calibration pass over the data set, so any process can make any shard. The scale is rounded up to
    float16, so no value is clipped.

    Args:
      latents: [k, i, j, d] float32, finite.
      dtype: float16, bfloat16, float32 or int8.
    Returns:
      stored [k, i, j, d] of STORAGE_DTYPES, and scale [k, d] float16 for int8, None for other dtypes.
      Values that overflow float16 become infinite; callers check.
    """
    if dtype == "bfloat16":
        return latents.astype(ml_dtypes.bfloat16).view(np.uint16), None
    if dtype != "int8":
        with np.errstate(over="ignore"):
            return latents.astype(STORAGE_DTYPES[dtype]), None
    exact = np.abs(latents).max(axis=(1, 2)) / np.float32(127)
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float16)
        scale = np.where(
            scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale
        )
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    return np.rint(latents / divisor[:, None, None, :]).astype(np.int8), scale


def dequantize(stored: Any, scale: Any) -> Any:
    """Inverse of `quantize`: latents [k, i, j, d] float32. Takes NumPy or JAX arrays, also under jit."""
    if stored.dtype == np.uint16:
        stored = stored.view(ml_dtypes.bfloat16)
    values = stored.astype(np.float32)
    if scale is None:
        return values
    with np.errstate(invalid="ignore"):  # infinite scale times zero: NaN, which callers detect
        return values * scale.astype(np.float32)[:, None, None, :]


def float32_latents(batch: dict[str, Any]) -> Any:
    """Latents [k, i, j, d] float32 of a batch of records, NumPy or JAX."""
    return dequantize(batch["latents"], batch.get("scale"))


class LayoutError(ValueError):
    """A record does not have the layout of its functaset; `position` is its place in the batch."""

    def __init__(self, position: int, reason: str):
        super().__init__(f"record {position} {reason}")
        self.position = position


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """Positions of the values in a record.

    Attributes:
      latent_shape: i, j, d.
      dtype: of the latents: float16, bfloat16, float32 or int8.
      struct: NumPy structured dtype of a record, one field per value.
      template: [struct.itemsize] uint8, a record of zeros.
      fixed: positions of the bytes that are equal in all records.
    """

    latent_shape: tuple[int, int, int]
    dtype: str
    struct: np.dtype = dataclasses.field(init=False, repr=False, compare=False)
    template: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    fixed: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        values: list[tuple[str, bytes, Any]] = [
            (name, _INT64_LIST, (np.uint8, (width,))) for name, width in _VARINT_WIDTHS.items()
        ]
        values.append(("psnr", _FLOAT_LIST, "<f4"))
        if self.dtype == "int8":
            values.append(("scale", _BYTES_LIST, ("<f2", self.latent_shape[2:])))
        values.append(("latents", _BYTES_LIST, (STORAGE_DTYPES[self.dtype], self.latent_shape)))
        names, kinds, formats = zip(*values, strict=True)
        widths = [np.dtype(part).itemsize for part in formats]
        headers = list(map(_entry_header, names, kinds, widths))
        body = sum(map(len, headers)) + sum(widths)
        record = bytearray(b"\x0a" + _varint(body))  # Example.features
        offsets, fixed = [], list(range(len(record)))
        for header, width in zip(headers, widths, strict=True):
            fixed += range(len(record), len(record) + len(header))
            record += header
            offsets.append(len(record))
            record += bytes(width)
        fields: Any = {"names": names, "formats": formats, "offsets": offsets}
        object.__setattr__(self, "struct", np.dtype(fields | {"itemsize": len(record)}))
        object.__setattr__(self, "template", np.frombuffer(bytes(record), np.uint8))
        object.__setattr__(self, "fixed", np.array(fixed))

    @property
    def latent_bytes(self) -> int:
        """Bytes of the latents of one record, with the scale of int8."""
        names = ("latents", "scale") if self.dtype == "int8" else ("latents",)
        return sum(self.struct[name].itemsize for name in names)

    @property
    def record_bytes(self) -> int:
        """Length of a record in bytes."""
        return self.struct.itemsize

    def pack(self, *, stored, scale, label, id, copy, psnr) -> list[bytes]:
        """Makes records of k examples.

        Args:
          stored, scale: see `quantize`.
          label, id, copy: [k] integers.
          psnr: [k] float32.
        Raises:
          ValueError: an id or a copy number is negative or too large for its width.
        """
        rows = np.tile(self.template, (len(stored), 1))
        records = rows.view(self.struct)[:, 0]
        for name, numbers in (("label", label), ("id", id), ("copy", copy)):
            records[name] = _pack_varints(name, np.asarray(numbers, np.int64))
        records["psnr"] = psnr
        records["latents"] = stored
        if scale is not None:
            records["scale"] = scale
        return [row.tobytes() for row in rows]

    def unpack(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Reads the values of k records.

        Returns:
          latents [k, i, j, d] of the dtype of the layout and, for int8, scale [k, d] float16; apply
          `float32_latents` on the device, after the transfer; label int32 [k], id int64 [k], copy
          int32 [k], psnr float32 [k].
        Raises:
          LayoutError: a record does not have this layout.
        """
        for k, record in enumerate(records):
            if len(record) != self.record_bytes:
                raise LayoutError(k, f"has {len(record)} bytes, not {self.record_bytes}")
        rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, self.record_bytes)
        equal = (rows[:, self.fixed] == self.template[self.fixed]).all(axis=1)
        if not equal.all():
            raise LayoutError(int(np.argmin(equal)), "is not a record of this functaset")
        values = rows.view(self.struct)[:, 0]
        latents = np.ascontiguousarray(values["latents"])
        if self.dtype == "bfloat16":
            latents = latents.view(ml_dtypes.bfloat16)
        scale = {"scale": values["scale"].copy()} if self.dtype == "int8" else {}
        return scale | {
            "latents": latents,
            "label": _unpack_varints(values["label"]).astype(np.int32),
            "id": _unpack_varints(values["id"]),
            "copy": _unpack_varints(values["copy"]).astype(np.int32),
            "psnr": values["psnr"].copy(),
        }


def _varint(number: int) -> bytes:
    """The shortest protobuf varint of a number."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _entry_header(name: str, kind: bytes, width: int) -> bytes:
    """The bytes before the `width` bytes of a value in the feature map of a tf.train.Example."""
    # The repeated field of the list: one string, or packed numbers.
    values = b"\x0a" + _varint(width)
    value_list = kind + _varint(len(values) + width) + values
    feature = b"\x12" + _varint(len(value_list) + width) + value_list
    key = b"\x0a" + _varint(len(name)) + name.encode()
    return b"\x0a" + _varint(len(key) + len(feature) + width) + key + feature


def _pack_varints(name: str, numbers: np.ndarray) -> np.ndarray:
    """[k] int64 -> [k, width] uint8."""
    width = _VARINT_WIDTHS[name]
    if width < 10 and numbers.size and not 0 <= numbers.min() <= numbers.max() < 1 << 7 * width:
        raise ValueError(
            f"{name} must be in [0, 2^{7 * width}), not {numbers.min()} to {numbers.max()}"
        )
    shifts = np.arange(0, 7 * width, 7, dtype=np.uint64)
    groups = (numbers.view(np.uint64)[:, None] >> shifts[None]).astype(np.uint8) & np.uint8(127)
    groups[:, :-1] |= np.uint8(128)  # more groups follow
    return groups


def _unpack_varints(groups: np.ndarray) -> np.ndarray:
    """[k, width] uint8 -> [k] int64."""
    shifts = np.arange(0, 7 * groups.shape[1], 7, dtype=np.uint64)
    numbers = (groups & np.uint8(127)).astype(np.uint64) << shifts[None]
    return np.bitwise_or.reduce(numbers, axis=1).view(np.int64)
