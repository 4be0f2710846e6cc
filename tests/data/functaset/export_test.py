"""Exports of a functaset: every format holds every record."""

import h5py
import numpy as np
import pyarrow.parquet
import pytest

from functa.cli.main import main
from functa.data.functaset.export import export
from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import open_functaset
from tests.support import functaset_sets


def read(out, to, split, shape):
    """Arrays of a split, by the library of the format."""
    if to == "npz":
        return dict(np.load(out / f"{split}.npz"))
    if to == "hdf5":
        with h5py.File(out / "functaset.h5") as file:
            return {name: values[:] for name, values in file[split].items()}
    table = pyarrow.parquet.read_table(out / f"{split}.parquet")
    arrays = {name: table[name].to_numpy() for name in table.column_names}
    return arrays | {"latents": np.stack(arrays["latents"]).reshape(-1, *shape)}


@pytest.mark.parametrize("to", ["npz", "hdf5", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_an_export_holds_all_records(tmp_path, monkeypatch, to, dtype):
    monkeypatch.setattr("functa.data.functaset.export._BLOCK_RECORDS", 7)  # several blocks
    functaset_sets.write(tmp_path / "functaset", dtype=dtype)
    functaset = open_functaset(tmp_path / "functaset", field_digest=None)
    (tmp_path / "out").mkdir()
    files = export(functaset, tmp_path / "out", to=to)
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    for split in functaset.manifest.splits:
        count = functaset.num_examples(split)
        if not count:
            continue
        records = functaset.source(split).read(np.arange(count))
        arrays = read(tmp_path / "out", to, split, functaset.manifest.latent_shape)
        assert arrays["latents"].dtype == (np.float16 if dtype == "float16" else np.float32)
        np.testing.assert_array_equal(arrays["latents"], float32_latents(records))
        for name in ("label", "id", "copy", "psnr"):
            np.testing.assert_array_equal(arrays[name], records[name])
        assert len(arrays) == 5


def test_hdf5_and_parquet_keep_the_statistics(tmp_path):
    functaset_sets.write(tmp_path / "functaset", dtype="float16")
    manifest = open_functaset(tmp_path / "functaset", field_digest=None).manifest
    for to in ("hdf5", "parquet"):
        out = tmp_path / to
        assert main(["export", str(tmp_path / "functaset"), f"--to={to}", f"--out={out}"]) == 0
    with h5py.File(tmp_path / "hdf5" / "functaset.h5") as file:
        np.testing.assert_array_equal(file.attrs["std"], manifest.std)
        assert file.attrs["field_digest"] == manifest.field_digest
    metadata = pyarrow.parquet.read_schema(tmp_path / "parquet" / "train.parquet").metadata
    assert metadata[b"mean"].decode() == str(manifest.mean)
