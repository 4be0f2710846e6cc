"""Plans of stages: arithmetic by hand, and sizes against those of written files."""

import jax
import numpy as np
import pytest

from functa.configs import digits
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.writer import FunctasetSpec, LatentShardWriter
from functa.data.sharded_writer import Shard
from functa.plan import hardware, stages, table
from functa.plan.cost import Assumptions
from functa.plan.hardware import Chip, Cluster
from functa.plan.programs import Programs
from functa.runtime.errors import UserError

CHIP = Chip(
    "by hand", peak=1e12, peak_highest=1e11, memory=1e9, bandwidth=1e10, links=1e9, network=1e8, per_host=4,
    max_devices=64, torus=2, hop_seconds=1e-6, cores=2, utilization=0.5,
)  # fmt: skip
ASSUMED = Assumptions(
    utilization=0.5, decode_rate=1e6 / 64, image_bytes=100.0, storage_bandwidth=1e5
)
SPLITS = {"train": 1200, "validation": 40, "test": 360}


def plan(config, name, *, devices=8, run_stages=None, **assumed):
    """The plan of one stage on hosts of four devices."""
    planner = stages.Planner(
        Programs(config),
        Cluster("by hand", CHIP, devices),
        splits=SPLITS,
        assumptions=ASSUMED._replace(**assumed),
        stages=run_stages or (name,),
    )
    return {stage.name: stage for stage in planner.plan()}[name]


@pytest.mark.parametrize(
    ("name", "chip", "devices", "hosts", "hops", "topology"),
    [
        ("v5e-256", "v5e", 256, 64, 2 * 2 * 15, "v5e:16x16"),
        ("v5litepod-16", "v5e", 16, 4, 2 * 2 * 3, "v5e:4x4"),
        ("v5p-128", "v5p", 64, 16, 2 * 3 * 3, "v5p:4x4x4"),  # counts cores, two per device
        ("v4-8", "v4", 4, 1, 2 * 3 * 1, "v4:2x2x1"),
        ("v6e-8", "v6e", 8, 1, 2 * 2 * 2, "v6e:2x4"),
        ("64xH100", "H100", 64, 8, 2 * 6, ""),
        ("1xA100", "A100", 1, 1, 0, ""),
        ("cpu:2", "cpu", 2, 1, 2, ""),
    ],
)
def test_names_of_hardware(name, chip, devices, hosts, hops, topology):
    cluster = hardware.parse(name)
    assert cluster.chip == hardware.CHIPS[chip]
    assert (cluster.devices, cluster.hosts, cluster.hops) == (devices, hosts, hops)
    assert cluster.topology == topology


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu:8", "v5e-256"),
        ("H100", "v5e-256"),
        ("8xH100-3", "v5e-256"),
        ("v9-8", "v9"),
        ("v5e-512", "256"),
        ("v5p-3", "cores"),
        ("0xH100", "0xH100"),
    ],
)
def test_impossible_hardware(name, reason):
    with pytest.raises(UserError, match=reason):
        hardware.parse(name)


def test_sending_takes_bandwidth_and_hops():
    for devices, seconds in (
        (1, 1e6 / 1e9),
        (4, 1e6 / 1e9 + 2 * 4e-6),
        (16, 1e6 / 1e8 + 2 * 12e-6),
    ):
        assert Cluster("", CHIP, devices).send_seconds(1e6, 2) == pytest.approx(seconds)


def test_the_mesh_must_fit_the_cluster():
    with pytest.raises(ValueError, match="mesh.fsdp=4"):
        Cluster("", CHIP, 6).mesh(data=-1, fsdp=4, cell=1)
    with pytest.raises(UserError, match="mesh.cell=8"):
        Cluster("", CHIP, 8).mesh(data=-1, fsdp=1, cell=8)
    assert dict(Cluster("", CHIP, 8).mesh(data=-1, fsdp=2, cell=2).shape) == {
        "data": 2, "fsdp": 2, "cell": 2,
    }  # fmt: skip


def test_the_size_of_a_functaset_is_that_of_its_files(tmp_path):
    layout = RecordLayout(latent_shape=(8, 8, 16), dtype="int8")
    spec = FunctasetSpec(
        field_digest="", config={}, layout=layout, compression="none", class_names=(),
        num_records={"train": 800, "validation": 0, "test": 100}, records_per_shard=600,
    )  # fmt: skip
    for shard in spec.shards:
        count, indices = shard.num_records, np.arange(shard.num_records)
        latents = np.random.default_rng(1).standard_normal((count, 8, 8, 16), np.float32)
        with LatentShardWriter(tmp_path, shard=shard, spec=spec) as writer:
            writer.write(
                latents=latents, label=indices, id=indices, copy=indices, psnr=latents[:, 0, 0, 0]
            )
            writer.finish(seconds=0.0)
    assert stages.functaset_bytes(spec.shards[:1], 52) == (1 + 1) * 65_536  # 107 bytes in the file
    assert stages.functaset_bytes(spec.shards[:1], 55) == (2 + 1) * 65_536
    written = sum((tmp_path / shard.file).stat().st_size for shard in spec.shards)
    planned = stages.functaset_bytes(spec.shards, layout.record_bytes)
    assert planned == pytest.approx(written, rel=0.005)


def test_the_slowest_host_counts():
    """Two hosts, batches of 8: one has shards of 20 and 5 records, the other one of 20."""
    rows = [(0, 20), (20, 40), (40, 45)]
    shards = [Shard("train", str(start), start, stop, 0) for start, stop in rows]
    assert stages.most_batches(shards, 2, 8) == 3 + 1
    assert stages.most_batches(shards, 1, 8) == 3 + 3 + 1
    assert stages.most_batches(shards, 9, 8) == 3


def test_a_training_stage_by_hand():
    config = digits.get_config("tiny")
    config.meta_learn.update(batch_size=16, cells_per_image=0, steps=12, eval_every=5)
    config.meta_learn.optimizer.name = "adam"
    stage = plan(config, "meta_learn")
    parts = stage.step_parts
    assert parts["products"] == pytest.approx(2 * stage.work.multiply_adds / (1e12 * 0.5))
    assert parts["products at highest precision"] == parts["decoding"] == parts["storage"] == 0
    ring = 2 * 7 / 8 * 4 * stage.parameters
    assert parts["collectives"] == pytest.approx(ring / 1e8 + 2 * 2 * 2 * 1e-6, rel=0.05)
    assert stage.step_seconds == parts["products"] + parts["collectives"]
    # Each of two hosts reads all images: 1,600 of 100 bytes at 0.1 MB/s, which is slower than decoding.
    assert stage.other_parts["first read"] == pytest.approx(1600 * 100 / 1e5)
    # Three validations and one test, on eight devices.
    products = Programs(config).evaluation("meta_learn").count_operations().multiply_adds
    per_image = 2 * products / config.meta_learn.eval_batch_size / 0.5e12
    assert stage.other_parts["evaluation"] == pytest.approx((3 * 40 + 360) * per_image / 8)
    assert per_image == pytest.approx(parts["products"] / 2 / 3, rel=0.2)
    assert stage.seconds == pytest.approx(12 * stage.step_seconds + sum(stage.other_parts.values()))
    assert stage.limit == "first read"
    assert stage.cache_bytes == {"host": 1600 * 64}
    # Two states of parameters, average, two moments and counters, three best parameters, and the export.
    assert stage.storage_bytes == pytest.approx(4 * stage.parameters * (2 * 4 + 3 + 1), rel=0.02)


def test_images_without_cache_are_read_in_every_step():
    config = digits.get_config("tiny")
    config.data.cache = "none"
    stage = plan(config, "meta_learn", decode_rate=1e3 / 64)
    images = config.meta_learn.batch_size / 2  # of one of two hosts
    assert stage.host_bytes == images * 100
    assert stage.step_parts["storage"] == pytest.approx(stage.host_bytes / 1e5)
    assert stage.step_parts["decoding"] == pytest.approx(images * 64 / 1e3)
    assert stage.step_seconds == stage.step_parts["decoding"]
    assert stage.other_parts["first read"] == 0
    assert (stage.limit, stage.cache_bytes) == ("decoding", {})


def test_encoding_by_hand():
    config = digits.get_config("tiny")  # two copies, batches of 16 per device, shards of 40
    config.data.cache = "none"
    record_bytes = Programs(config).record_layout.record_bytes
    stage = plan(config, "encode")
    records = 2 * 1200 + 40 + 360
    assert (stage.examples, stage.batch_size) == (records, 8 * 16)
    assert stage.shards == 60 + 1 + 9
    assert stage.steps == 35  # one batch of up to 64 for each of the 35 shards of a host
    images = 64 * 1600 / 2800
    assert stage.host_bytes == pytest.approx(images * 100 + 64 * record_bytes)
    assert stage.step_parts["storage"] == pytest.approx(stage.host_bytes / 1e5)
    assert stage.step_parts["decoding"] == pytest.approx(images * 64 / 1e6)
    assert stage.storage_bytes == 70 * 2 * 65_536
    assert (stage.work.sent_bytes, stage.limit) == (0, "storage")
    config.data.cache = "host"
    first_read = pytest.approx(1600 * 100 / 1e5)
    assert plan(config, "encode").other_parts["first read"] == first_read
    after = plan(config, "encode", run_stages=("meta_learn", "encode"))  # which caches the images
    assert (after.other_parts["first read"], after.step_parts["decoding"]) == (0, 0)
    assert after.host_bytes == 64 * record_bytes
    config.encode.crop = "resize"  # needs the stored images
    assert plan(config, "encode").host_bytes == stage.host_bytes


def test_classifiers_read_the_copies_that_they_train_on():
    config = digits.get_config("tiny")
    assert plan(config, "classify").examples == 2 * 1200
    config.classify.copies = "first"
    stage = plan(config, "classify")
    latent_bytes = Programs(config).record_layout.latent_bytes
    assert (stage.examples, stage.cache_bytes) == (1200, {"host": 1600 * latent_bytes})


def test_samples_are_drawn_in_whole_blocks():
    config = digits.get_config("tiny")  # 64 samples in blocks of 16, 4 steps of Heun, guided
    config.generate.guidance_sweep = ()
    guided = plan(config, "generate", devices=4)
    highest = 2 * guided.work.multiply_adds_highest / 0.5e11  # the update of Muon
    assert guided.step_parts["products at highest precision"] == pytest.approx(highest)
    assert plan(config, "generate", devices=8).other_parts["sampling"] == pytest.approx(
        guided.other_parts["sampling"]
    )
    forward = guided.work.multiply_adds / (3 * config.generate.batch_size / 4)
    # Two evaluations of the denoiser per step of Heun, each with and without the class.
    expected = 2 * (2 * 2 * 4) * 16 * forward / 0.5e12
    assert guided.other_parts["sampling"] == pytest.approx(expected, rel=0.1)
    config.generate.guidance.scale = 1.0
    config.generate.guidance_sweep = (1.0, 2.0)  # 64 samples each, always guided
    sweep = plan(config, "generate", devices=2)
    assert sweep.other_parts["sampling"] == pytest.approx(
        (2 / 2 + 2 * 2) * guided.other_parts["sampling"], rel=1e-3
    )
    latent_bytes = 4 * np.prod(config.field.latent_shape)
    assert sweep.storage_bytes - guided.storage_bytes == 2 * 64 * latent_bytes


def test_a_step_computes_or_waits():
    stage = plan(digits.get_config("tiny"), "classify")
    stage.step_parts |= {"products": 1.0, "products at highest precision": 0.5}
    stage.step_parts |= {"collectives": 0.25, "decoding": 1.5}
    assert (stage.step_seconds, stage.limit) == (1.75, "decoding")
    stage.step_parts |= {"storage": 3.0}
    assert (stage.step_seconds, stage.limit) == (3.0, "storage")


def test_a_program_is_compiled_and_measured_as_on_the_whole_cluster():
    config = digits.get_config("tiny")
    analyses = []
    for devices in (4, 64):
        config.meta_learn.batch_size = 4 * devices
        planner = stages.Planner(
            Programs(config), Cluster("", CHIP, devices), splits=SPLITS, assumptions=ASSUMED,
            stages=("meta_learn",), devices=jax.devices()[:2], measure=devices == 64,
        )  # fmt: skip
        (stage,) = planner.plan()
        analyses.append(stage.analysis)
    assert analyses[0] == analyses[1]
    assert stage.measured_seconds > 0
    assert analyses[0].argument_bytes > stage.state_bytes
    assert analyses[0].temporary_bytes > 1000
    assert analyses[0].output_bytes < stage.state_bytes  # the state is donated
    cluster = Cluster("", CHIP._replace(memory=stage.analysis.peak_bytes), 64)
    assert "TOO MUCH" not in "".join(table.stage_table(cluster, [stage]))
    stage.cache_bytes = {"device": 1}
    assert "TOO MUCH" in "".join(table.stage_table(cluster, [stage]))
