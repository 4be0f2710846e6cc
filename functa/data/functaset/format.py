"""The bytes of a functaset: file names, the layout of a record, latents rounded to a stored dtype.

A record is a `tf.train.Example`, so that TFDS reads it. All records of a functaset have one length
and the same bytes everywhere but in the values: integers are stored as protobuf varints of a fixed
width (with leading groups of zeros, which protobuf parsers accept). So packing and unpacking
thousands of records is one NumPy view instead of a parse of each.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

FORMAT_VERSION = 4
NAME = "functaset"
MANIFEST = "manifest.json"
# What TFDS reads; the last where the classes are known.
METADATA = ("dataset_info.json", "features.json", "label.labels.txt")
PARTS = "parts"  # folder of one small JSON file a finished shard
TEMPORARY = ".tmp"  # ending of a file that is being written
SPLITS = ("train", "validation", "test")

# dtype of the latents -> how they lie in a record. NumPy knows bfloat16 only after ml_dtypes was
# imported, and TFDS then asks for TensorFlow, so bfloat16 is stored as its bits.
STORED_AS = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int8": "|i1"}

_VARINT_WIDTHS = {"label": 10, "id": 7, "copy": 3}  # bytes of 7 bits; 10 hold any int64
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"  # fields of tf.train.Feature


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """`functaset-train.array_record-00000-of-00009`, the name TFDS expects."""
    return f"{NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def file_digest(file: epath.PathLike) -> str:
    """`sha256:...` of a file's bytes."""
    with epath.Path(file).open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def round_latents(latents: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rounds latents to what is stored.

    Args:
      latents: [k, i, j, d] float32, finite.
      dtype: float16, bfloat16, float32 or int8.
    Returns:
      (stored [k, i, j, d] in the dtype of STORED_AS, scale [k, d] float16 for int8, else None).
      int8 is symmetric with a scale for each record and channel, latents = stored * scale: it needs
      no calibration pass, so any process can make any shard. The scale is rounded up to float16, so
      that no value is clipped. A value that float16 cannot hold becomes infinite; callers check.
    """
    if dtype == "bfloat16":
        return latents.astype(ml_dtypes.bfloat16).view(np.uint16), None
    if dtype != "int8":
        with np.errstate(over="ignore"):
            return latents.astype(STORED_AS[dtype]), None
    exact = np.abs(latents).max(axis=(1, 2)) / np.float32(127)
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float16)
        scale = np.where(
            scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale
        )
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    return np.rint(latents / divisor[:, None, None, :]).astype(np.int8), scale


def restore_latents(stored: Any, scale: Any) -> Any:
    """Inverse of `round_latents`: [k, i, j, d] float32; arrays of NumPy or, under jit too, of JAX."""
    if stored.dtype == np.uint16:
        stored = stored.view(ml_dtypes.bfloat16)
    values = stored.astype(np.float32)
    if scale is None:
        return values
    with np.errstate(invalid="ignore"):  # an infinite scale times zero: not a number either
        return values * scale.astype(np.float32)[:, None, None, :]


def float32_latents(rows: dict[str, Any]) -> Any:
    """Latents [k, i, j, d] float32 of what a source of a functaset has read; NumPy or JAX."""
    return restore_latents(rows["latents"], rows.get("scale"))


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """Where each value of a record lies.

    Attributes:
      latent_shape: i, j, d.
      dtype: of the latents: float16, bfloat16, float32 or int8.
      struct: NumPy structured dtype of a whole record, one field a value.
      template: [struct.itemsize] uint8, a record whose values are zero.
      fixed: positions of the bytes that are the same in all records.
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
        values.append(("latents", _BYTES_LIST, (STORED_AS[self.dtype], self.latent_shape)))
        names, kinds, formats = zip(*values, strict=True)
        widths = [np.dtype(part).itemsize for part in formats]
        headers = [
            _entry_header(name, kind, width)
            for name, kind, width in zip(names, kinds, widths, strict=True)
        ]
        body = sum(map(len, headers)) + sum(widths)
        record = bytearray(b"\x0a" + _varint(body))  # Example.features
        offsets, fixed = [], [np.arange(len(record))]
        for header, width in zip(headers, widths, strict=True):
            fixed.append(np.arange(len(record), len(record) + len(header)))
            record += header
            offsets.append(len(record))
            record += bytes(width)
        fields: Any = {
            "names": names,
            "formats": formats,
            "offsets": offsets,
            "itemsize": len(record),
        }
        object.__setattr__(self, "struct", np.dtype(fields))
        object.__setattr__(self, "template", np.frombuffer(bytes(record), np.uint8))
        object.__setattr__(self, "fixed", np.concatenate(fixed))

    @property
    def latent_bytes(self) -> int:
        """Of the latents of one record, the scales of int8 included."""
        names = ("latents", "scale") if self.dtype == "int8" else ("latents",)
        return sum(self.struct[name].itemsize for name in names)

    @property
    def record_bytes(self) -> int:
        return self.struct.itemsize

    def pack(self, *, stored, scale, label, id, copy, psnr) -> list[bytes]:
        """Records of k examples.

        Args:
          stored, scale: as `round_latents` returns them.
          label, id, copy: [k] integers.
          psnr: [k] float32.
        Raises:
          ValueError: an id or a copy number is negative or too large for its place.
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
        """Values of k records.

        Returns:
          latents [k, i, j, d] as stored (float16, bfloat16, float32, int8) and, for int8, scale
          [k, d] float16: `float32_latents` makes numbers of them, best where they are used, since
          they travel in half the bytes; label int32 [k], id int64 [k], copy int32 [k], psnr float32 [k].
        Raises:
          ValueError: a record is not of this layout; names its position in `records`.
        """
        wrong = [k for k, record in enumerate(records) if len(record) != self.record_bytes]
        if wrong:
            raise ValueError(
                f"record {wrong[0]} has {len(records[wrong[0]])} bytes, not {self.record_bytes}"
            )
        rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, self.record_bytes)
        same = rows[:, self.fixed] == self.template[self.fixed]
        if not same.all():
            k = int(np.argmin(same.all(axis=1)))
            raise ValueError(f"record {k} is not a record of this functaset: its headers differ")
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
    """Shortest protobuf varint, as lengths are written."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _entry_header(name: str, kind: bytes, width: int) -> bytes:
    """What stands before the `width` bytes of a value in the feature map of a tf.train.Example."""
    values = b"\x0a" + _varint(
        width
    )  # the repeated field of the list: one string, or packed numbers
    listed = kind + _varint(len(values) + width) + values
    feature = b"\x12" + _varint(len(listed) + width) + listed
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
