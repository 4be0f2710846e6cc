"""The plan: arithmetic by hand, sizes against what is really written, and what it refuses."""

import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import cifar10_spatial, digits
from functa.data.functaset import size
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.writer import FunctasetSpec, LatentShardWriter, plan_shards
from functa.data.sharded_writer import Shard
from functa.fields.field import make_field
from functa.plan import (
    costs,
    downstream_operations,
    hardware,
    memory_traffic,
    operations,
    plan,
    xla_stats,
)
from functa.plan.hardware import Chip, Cluster
from functa.training.tasks import generation
from functa.training.train_step import initial_state
from tests.cli.functaset_tools_test import refusal
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import bench_plan  # noqa: E402
import plan as tool  # noqa: E402

CHIP = Chip(
    "by hand", peak=1e12, peak_highest=1e11, memory=1e9, bandwidth=1e10, links=1e9, network=1e8, per_host=4,
    most=64, torus=2, hop_seconds=1e-6, cores=2, utilisation=0.5,
)  # fmt: skip
ASSUMED = costs.Assumptions(
    utilisation=0.5, decode_rate=1e6 / 64, image_bytes=100.0, storage_bandwidth=1e5
)
SPLITS = {"train": 1200, "validation": 40, "test": 360}


@pytest.mark.parametrize(
    ("topology", "chip", "devices", "hosts", "hops"),
    [
        ("v5e-256", "v5e", 256, 32, 2 * 2 * 15),
        ("v5litepod-16", "v5e", 16, 2, 2 * 2 * 3),
        ("v5p-128", "v5p", 64, 16, 2 * 3 * 3),  # counts cores, two a device
        ("v6e-8", "v6e", 8, 1, 2 * 2 * 2),
        ("64xH100", "H100", 64, 8, 2 * 6),
        ("1xA100", "A100", 1, 1, 0),
        ("cpu:2", "cpu", 2, 1, 2),
    ],
)
def test_a_topology_is_a_chip_and_a_number(topology, chip, devices, hosts, hops):
    found = hardware.parse(topology)
    assert found.chip == hardware.CHIPS[chip]
    assert (found.devices, found.hosts, found.hops) == (devices, hosts, hops)


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("gpu:8", "want a chip and a number"),
        ("H100", "want a chip and a number"),
        ("8xH100-3", "want a chip and a number"),
        ("v9-8", "unknown chip v9; known are v4, v5e"),
        ("v5e-512", "want 1 to 256 chips"),
        ("v5p-3", "want a multiple of 2"),
        ("0xH100", "want 1 to"),
    ],
)
def test_other_topologies_are_told(topology, told):
    with pytest.raises(ValueError, match=told):
        hardware.parse(topology)


def test_what_is_sent_takes_bandwidth_and_hops():
    inside, beyond = Cluster("", CHIP, 4), Cluster("", CHIP, 16)
    assert inside.send_seconds(1e6, 1) == pytest.approx(1e6 / 1e9 + 4e-6)
    assert beyond.send_seconds(1e6, 2) == pytest.approx(1e6 / 1e8 + 2 * 12e-6)
    assert Cluster("", CHIP, 1).send_seconds(0, 0) == 0


def test_a_share_holds_the_state_and_sends_the_gradient():
    config = digits.get_config("tiny")
    whole = memory_traffic.of_stage(config, "classify", memory_traffic.described_mesh(config, 8))
    task = xla_stats.described_task(config, "classify")
    state = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(int(np.prod(shape)) for shape in whole.parameters) == numbers
    assert whole.state_bytes == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    assert whole.sent_bytes == pytest.approx(2 * 7 / 8 * 4 * (numbers + 20))
    assert (whole.collectives, whole.whole_bytes) == (1, whole.state_bytes)
    alone = memory_traffic.of_stage(config, "classify", memory_traffic.described_mesh(config, 1))
    assert (alone.sent_bytes, alone.collectives) == (0, 0)


def test_what_lies_over_fsdp_is_gathered_scattered_and_added_up():
    config = digits.get_config("tiny")
    config.classify.model.update(width=128, heads=2)
    config.mesh.fsdp = 4
    share = memory_traffic.of_stage(config, "classify", memory_traffic.described_mesh(config, 8))
    cut = 4 * sum(int(np.prod(shape)) for shape in share.parameters if np.prod(shape) >= 1 << 14)
    rest = 4 * (sum(int(np.prod(shape)) for shape in share.parameters) + 20) - cut
    assert cut > 4 * (1 << 14)
    assert share.sent_bytes == pytest.approx(
        2 * 7 / 8 * rest + 2 * 3 / 4 * cut + 2 * 1 / 2 * cut / 4
    )
    # Parameters, their average and two moments.
    assert share.whole_bytes - share.state_bytes == 4 * (cut - cut // 4)
    with pytest.raises(ValueError, match=r"do not make up the 6 devices"):
        memory_traffic.described_mesh(config, 6)


@pytest.mark.parametrize(
    ("dtype", "compression", "error"),
    [("float16", "none", 0.005), ("int8", "none", 0.005), ("float16", "zstd", 0.02)],
)
def test_a_functaset_is_as_large_as_it_will_be(tmp_path, dtype, compression, error):
    """Of latents that are not those it is measured with: each channel has another size."""
    layout = RecordLayout(latent_shape=(8, 8, 16), dtype=dtype)
    spec = FunctasetSpec(
        field_digest="",
        config={},
        layout=layout,
        compression=compression,
        class_names=(),
        num_records={"train": 1500, "validation": 0, "test": 700},
        records_per_shard=600,
    )
    random = np.random.default_rng(1)
    for shard in spec.shards:
        shape = (shard.num_records, 8, 8, 16)
        scales = 10.0 ** random.uniform(-0.2, 0.2, 16).astype(np.float32)
        with LatentShardWriter(tmp_path, shard=shard, spec=spec) as writer:
            writer.write(
                latents=random.standard_normal(shape, np.float32) * scales[None, None, None],
                label=np.zeros(shard.num_records, int),
                id=np.arange(shard.num_records),
                copy=np.zeros(shard.num_records, int),
                psnr=np.full(shard.num_records, 30, np.float32),
            )
            writer.finish(seconds=0.0)
    written = sum((tmp_path / shard.file).stat().st_size for shard in spec.shards)
    of_record = size.record_bytes(layout, compression)
    assert size.shard_bytes(spec.shards, of_record) == pytest.approx(written, rel=error)


def test_shards_are_filled_up_to_blocks():
    shards = [Shard("train", "a", 0, 10, 0), Shard("train", "b", 10, 11, 0)]
    assert size.shard_bytes(shards, 10_000.0) == (2 + 1 + 1 + 1) * 65_536


def test_the_host_with_most_batches_is_waited_for():
    """Two hosts, batches of 8: 20 and 5 records for one, 20 and none for the other."""
    layout = RecordLayout(latent_shape=(8, 8, 16), dtype="float16")
    sizes = {"train": 45, "validation": 0, "test": 0}
    shards = plan_shards(sizes, layout=layout, records_per_shard=20)
    assert plan.most_batches(shards, 2, 8) == 3 + 1
    assert plan.most_batches(shards, 1, 8) == 3 + 3 + 1
    assert plan.most_batches(shards, 9, 8) == 3


def planner(config, devices=8, **assumed):
    cluster = Cluster("by hand", CHIP, devices)
    assumptions = ASSUMED._replace(**assumed)
    return plan.Planner(
        config, cluster, SPLITS, assumptions, stages=("meta_learn", "encode"), compiles=False
    )


def test_a_stage_that_trains_by_hand():
    config = digits.get_config("tiny")
    config.meta_learn.update(batch_size=16, cells_per_image=0, steps=12, eval_every=5)
    config.meta_learn.optimizer.name = "adam"
    stage = planner(config).meta_learn()
    needed = operations.training(make_field(config), steps=3, second_order=True)
    assert needed < stage.cost.each < 1.1 * needed
    products = 2 * (2 * stage.cost.each + stage.cost.once)  # two images a device
    assert stage.seconds["products"] == pytest.approx(products / (1e12 * 0.5))
    assert stage.operations == pytest.approx(12 * 8 * products)
    assert stage.seconds["optimizer"] == stage.optimizer == stage.traffic_seconds == 0
    ring = 2 * 7 / 8 * 4 * (stage.parameters + 20)
    assert stage.seconds["all-reduce"] == pytest.approx(ring / 1e8 + 2 * 2 * 2 * 1e-6)
    assert stage.step_seconds == stage.seconds["products"] + stage.seconds["all-reduce"]
    # Two hosts decode everything once: 1,600 images of 64 pixels at a million of these a second, while 1,600 of 100
    # bytes at 0.1 MB a second take longer.
    assert stage.extra_hours["first read"] == pytest.approx(1600 * 100 / 1e5 / 3600)
    fit = 5 / 15 * needed
    evaluated = 3 * 40 + 360
    assert stage.extra_hours["evaluation"] == pytest.approx(
        2 * evaluated * fit / (8 * 0.5e12) / 3600, rel=0.1
    )
    assert stage.hours == pytest.approx(
        12 * stage.step_seconds / 3600 + sum(stage.extra_hours.values())
    )
    assert stage.limit == "first read"
    assert stage.read_bytes == 2 * 1600 * 100
    assert stage.kept_bytes == {"host": 1600 * 64}
    # Two states, of parameters, average, two moments and counters, three sets of parameters, and the export.
    assert stage.storage_bytes == pytest.approx(4 * stage.parameters * (2 * 4 + 3 + 1), rel=0.02)


def test_images_that_are_not_kept_are_read_in_every_step():
    config = digits.get_config("tiny")
    config.data.cache = "none"
    stage = planner(config, decode_rate=1e3 / 64).meta_learn()
    assert stage.host_bytes == config.meta_learn.batch_size / 2 * 100
    assert stage.seconds["storage"] == pytest.approx(stage.host_bytes / 1e5)
    assert stage.seconds["input"] == pytest.approx(config.meta_learn.batch_size / 2 * 64 / 1e3)
    assert stage.step_seconds == stage.seconds["input"]
    assert (stage.extra_hours["first read"], stage.limit) == (0, "input")
    assert stage.read_bytes == stage.steps * stage.batch_size * 100


def test_muon_takes_its_time_at_highest_precision_on_every_device():
    config = digits.get_config("tiny")
    one, eight = (planner(config, devices).generate() for devices in (1, 8))
    assert one.optimizer == eight.optimizer > 0
    assert one.seconds["optimizer"] == pytest.approx(2 * one.optimizer / (1e11 * 0.5))
    assert one.seconds["products"] == pytest.approx(8 * eight.seconds["products"])


def test_random_cells_are_counted_as_cells():
    config = digits.get_config("tiny")
    config.meta_learn.cells_per_image = 2  # of four
    stage = planner(config, devices=1).meta_learn()
    images = config.meta_learn.batch_size
    products = 2 * (images * stage.cost.each + stage.cost.once)
    assert stage.seconds["products"] == pytest.approx(products / 0.5e12)
    config.meta_learn.cells_per_image = 0
    assert planner(config, devices=1).meta_learn().cost.each == pytest.approx(
        2 * stage.cost.each, rel=0.01
    )


def test_encoding_by_hand():
    config = digits.get_config("tiny")  # two copies, batches of 16 a device, shards of 40
    config.data.cache = "none"
    found = planner(config)
    stage = found.encode()
    records = 2 * 1200 + 40 + 360
    assert (stage.examples, stage.batch_size) == (records, 8 * 16)
    assert stage.shards == 60 + 1 + 9
    assert stage.steps == 35  # a shard of 40 is less than a batch of the 64 of a host
    images = 64 * 1600 / 2800
    written = images * 100 + 64 * found.record_bytes
    assert stage.host_bytes == pytest.approx(written)
    assert stage.seconds["storage"] == pytest.approx(written / 1e5)
    assert stage.seconds["input"] == pytest.approx(images * 64 / 1e6)
    assert stage.storage_bytes == 70 * 2 * 65_536  # as small as files of ArrayRecord can be
    assert stage.read_bytes == 1600 * 100
    assert (stage.sent_bytes, stage.limit) == (0, "storage")
    config.data.cache = "host"
    found = planner(config)
    after = found.encode()  # images are in memory
    assert (after.seconds["input"], after.host_bytes) == (0, 64 * found.record_bytes)
    assert (after.extra_hours["first read"], after.read_bytes) == (0, 0)
    found.names = ("encode",)
    assert found.encode().extra_hours["first read"] == pytest.approx(1600 * 100 / 1e5 / 3600)


def test_samples_are_drawn_in_whole_blocks_by_every_device():
    config = digits.get_config("tiny")  # blocks of 16, 4 steps of Heun, guided at 1.5
    config.generate.sweep = ()
    stage = planner(config).generate()  # 64 samples: four blocks, one turn
    module = generation.make_model(config)
    one = downstream_operations.forward(module, tuple(config.field.latent_shape))
    seconds = 2 * (2 * 7) * one * 16 / 0.5e12
    assert stage.extra_hours["sampling"] == pytest.approx(seconds / 3600)
    left = stage.storage_bytes
    config.generate.guidance.scale = 1.0
    config.generate.sweep = (1.0, 2.0)  # of 64 samples each, guided always
    swept = planner(config, devices=1).generate()
    assert swept.extra_hours["sampling"] * 3600 == pytest.approx(4 * seconds / 2 + 2 * 4 * seconds)
    latent_bytes = 4 * math.prod(config.field.latent_shape)
    assert swept.storage_bytes - left == 2 * 64 * latent_bytes
    config.generate.update(samples=48, sweep=())
    assert left - planner(config).generate().storage_bytes == 16 * latent_bytes


def test_a_step_is_computing_or_waiting():
    stage = planner(digits.get_config("tiny")).classify()
    stage.seconds |= {"products": 1.0, "optimizer": 0.5, "all-reduce": 0.25, "input": 1.5}
    assert (stage.step_seconds, stage.limit) == (1.75, "input")
    stage.seconds |= {"storage": 3.0}
    assert (stage.step_seconds, stage.limit) == (3.0, "storage")


def test_a_share_is_compiled_as_it_would_be_on_the_whole_cluster():
    """Four devices have a quarter of the images each, and more devices change no device's program."""
    config = digits.get_config("tiny")
    config.meta_learn.batch_size = 4
    small = memory_traffic.program(config, "meta_learn", memory_traffic.described_mesh(config, 4))
    config.meta_learn.batch_size = 64
    large = memory_traffic.program(config, "meta_learn", memory_traffic.described_mesh(config, 64))
    assert small == large
    (collective,) = large.collectives
    assert collective.kind == "all-reduce"
    parameters = memory_traffic.of_stage(
        config, "meta_learn", memory_traffic.described_mesh(config, 64)
    ).parameters
    numbers = sum(int(np.prod(shape)) for shape in parameters)
    assert numbers < sum(collective.numbers) < numbers + 20
    config.mesh.update(data=-1, fsdp=8)
    with pytest.raises(ValueError, match="16 simulated devices are needed, there are 4"):
        memory_traffic.program(config, "classify", memory_traffic.described_mesh(config, 64))


def test_splits_are_those_of_the_config():
    config = cifar10_spatial.get_config("tiny")
    assert tool.splits_of(config, None) == {"train": 96, "validation": 40, "test": 96}
    config.data.max_examples = 0
    assert tool.splits_of(config, ["70", "20"]) == {"train": 30, "validation": 40, "test": 20}
    for name, images, told in (
        ("cifar10", ["70"], "want TRAIN,TEST"),
        ("cifar10", ["70", "x"], "want TRAIN,TEST"),
        ("cifar10", ["40", "20"], "must be from 1 to 39"),
        ("unheard_of", None, "how many images unheard_of has"),
    ):
        config.data.name = name
        with pytest.raises(ValueError, match=told):
            tool.splits_of(config, images)


def test_the_first_words_are_config_and_topology():
    config = "--config=configs/digits.py"
    assert tool.words(["digits:tiny", "cpu:2", "--json"]) == (
        [f"{config}:tiny", "--json"],
        ["cpu:2"],
    )
    assert tool.words(["configs/digits.py", "cpu:2"]) == ([config], ["cpu:2"])
    assert tool.words(["--help"]) == (["--help"], [])


def run_plan(program_env, *arguments):
    return subprocess.run(
        [sys.executable, "tools/plan.py", *arguments],
        cwd=ROOT, env=program_env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_plan_prints_one_object(program_env):
    result = run_plan(program_env, "digits:tiny", "cpu:2", "--nocompile", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["devices"], told["hosts"]) == (2, 1)
    assert [row["name"] for row in told["stages"]] == [
        "meta_learn", "encode", "classify", "generate",
    ]  # fmt: skip
    assert told["hours"] == pytest.approx(sum(row["hours"] for row in told["stages"]))
    assert told["device_hours"] == pytest.approx(2 * told["hours"])
    assert told["assumptions"]["utilisation"] == 0.5


@pytest.mark.slow
def test_plan_compiles_and_prints_a_table(program_env):
    result = run_plan(program_env, "digits:tiny", "4xH100", "--config.mesh.fsdp=2")
    assert result.returncode == 0, result.stderr
    assert "| projected | meta_learn | encode | classify | generate |" in result.stdout
    assert "assumed: 20% of the peak" in result.stdout
    assert "not compiled" not in result.stdout
    assert "TOO MUCH" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("digits:tiny", "gpu:8"), ["TOPOLOGY=gpu:8: want a chip and a number"]),
        pytest.param(("digits:tiny",), ["want NAME[:OPTIONS] TOPOLOGY"], marks=pytest.mark.slow),
        pytest.param(("nothing", "cpu:2"), ["configs/nothing.py"], marks=pytest.mark.slow),
        (
            (
                "digits:tiny", "cpu:3", "--utilisation=2", "--images=7", "--config.encode.batch_size=0",
                "--config.stages=meta_learn,paint",
            ),
            [
                "meta_learn.batch_size=16 must be a positive multiple of the 3 devices",
                "--utilisation=2 must be at most 1",
                "--images=7: want TRAIN,TEST",
                "encode.batch_size=0 must be at least 1",
                "config.stages=('meta_learn', 'paint'): known are",
            ],
        ),
    ],
)  # fmt: skip
def test_plan_refuses(program_env, arguments, told):
    result = run_plan(program_env, *arguments)
    assert result.returncode == 2
    for sentence in told:
        assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--sizes=33"], "want multiples of 16"), (["--stages=paint"], "unknown paint")],
)
def test_bench_plan_refuses(capsys, arguments, told):
    assert told in refusal(bench_plan.main, arguments, capsys)


def test_crops_are_of_photographs():
    crops = bench_plan.Crops(5, 3, 32)
    images = crops.read(np.array([0, 2]))["image"]
    assert images.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(
        bench_plan.Crops(7, 3, 32).read(np.array([0]))["image"][0], images[1]
    )


@pytest.mark.slow
def test_the_plan_is_within_its_bounds(program_env):
    """The whole comparison at the smallest size, compiled as everybody compiles; larger ones take minutes."""
    result = subprocess.run(
        [sys.executable, "tools/bench_plan.py", "--sizes=32", "--train_steps=20", "--json"],
        cwd=ROOT, env=program_env | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert len(result.stdout.splitlines()) == 4 + 4 + 1
