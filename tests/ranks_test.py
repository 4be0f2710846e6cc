"""Structure: a module imports only modules of a lower rank, stays short, and speaks of nothing but the project."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "functa").rglob("*.py"))
LONGEST_MODULE = 330  # lines

RANKS = {
    "functa": 0,
    "functa.clusters": 0,
    "functa.command": 0,
    "functa.config": 1,
    "functa.coords": 0,
    "functa.data": 0,
    "functa.disk": 0,
    "functa.distances": 0,
    "functa.data.functaset_format": 0,
    "functa.data.patience": 0,
    "functa.data.records": 0,
    "functa.interruption": 3,
    "functa.memory": 0,
    "functa.metrics": 0,
    "functa.products": 0,
    "functa.pictures": 0,
    "functa.progress": 0,
    "functa.workdir": 3,
    "functa.rng": 0,
    "functa.analysis": 0,
    "functa.analysis.quantisation": 0,
    "functa.analysis.table": 0,
    "functa.charts": 1,
    "functa.data.sources": 0,
    "functa.data.archives": 1,
    "functa.data.image_set": 1,
    "functa.data.image_shards": 2,
    "functa.data.image_writer": 3,
    "functa.data.photographs": 2,
    "functa.data.tars": 3,
    "functa.data.augment": 1,
    "functa.data.copies": 2,
    "functa.data.functaset": 2,
    "functa.data.functaset_writer": 2,
    "functa.data.images": 1,
    "functa.diffusion": 2,
    "functa.mesh": 1,
    "functa.patches": 1,
    "functa.optim": 2,
    "functa.siren": 1,
    "functa.store": 1,
    "functa.summary_writer": 1,
    "functa.transformer": 1,
    "functa.checkpoint": 3,
    "functa.described": 3,
    "functa.distributed": 2,
    "functa.classifier": 2,
    "functa.dashboard": 2,
    "functa.data.crops": 1,
    "functa.data.folders": 3,
    "functa.data.functaset_manifest": 3,
    "functa.data.functaset_verify": 3,
    "functa.data.latent_augment": 2,
    "functa.data.functaset_size": 3,
    "functa.data.latent_batches": 3,
    "functa.data.pipeline": 2,
    "functa.denoiser": 2,
    "functa.features": 3,
    "functa.field": 2,
    "functa.bands": 3,
    "functa.page": 2,
    "functa.gallery": 3,
    "functa.showcase": 5,
    "functa.baseline": 3,
    "functa.inception": 4,
    "functa.inner_loop": 3,
    "functa.judging": 4,
    "functa.operations": 3,
    "functa.results": 3,
    "functa.imputation": 4,
    "functa.interpolation": 4,
    "functa.samplers": 3,
    "functa.tasks": 3,
    "functa.compiled": 6,
    "functa.step": 4,
    "functa.fitting": 4,
    "functa.downstream_operations": 4,
    "functa.program_operations": 4,
    "functa.tasks.classification": 5,
    "functa.tasks.generation": 5,
    "functa.tasks.meta_learning": 5,
    "functa.analysis.chart": 6,
    "functa.analysis.subject": 6,
    "functa.encode": 6,
    "functa.illustration": 6,
    "functa.report": 6,
    "functa.train": 6,
    "functa.analysis.fitting": 7,
    "functa.analysis.space": 7,
    "functa.analysis.storage": 7,
    "functa.preflight": 7,
    "functa.shares": 7,
    "functa.costs": 8,
    "functa.plan": 10,
    "functa.sampling": 2,
    "functa.normalization": 3,
    "functa.trained": 6,
    "functa.generate": 6,
    "functa.imputer": 7,
    "functa.samples": 7,
    "functa.analysis.measures": 8,
    "functa.explore": 0,
    "functa.explore.kept": 0,
    "functa.explore.originals": 3,
    "functa.explore.decoding": 3,
    "functa.explore.collection": 3,
    "functa.explore.opened": 7,
    "functa.explore.drawing": 8,
    "functa.explore.imputing": 8,
    "functa.explore.explorer": 9,
    "functa.explore.asking": 10,
    "functa.explore.web": 11,
    "functa.explore.__main__": 12,
    "functa.exhibits": 8,
    "functa.stages": 9,
    "functa.pipeline": 10,
    "functa.main": 11,
}


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, name, is_package, modules):
    """The modules that `source`, the text of module `name`, imports; `modules` tells which names are modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                package = package[: len(package) - (node.level - 1)]
                base = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules else base)
    return found


def violations(sources, ranks):
    """Sentences about every import that is not downward; `sources` is {module: (text, is_package)}."""
    found = []
    for name, (source, is_package) in sources.items():
        if name not in ranks:
            found.append(f"{name} has no rank: give it one in tests/ranks_test.py")
            continue
        for imported in imports(source, name, is_package, ranks):
            top = imported.split(".")[0]
            if top in ("configs", "tests", "tools"):
                found.append(f"{name} imports {imported}, which is not in the package")
            elif top == "tensorflow":
                found.append(f"{name} imports {imported}: nothing here needs TensorFlow")
            elif top == "functa" and imported in ranks and ranks[imported] >= ranks[name]:
                found.append(
                    f"{name} (rank {ranks[name]}) imports {imported} (rank {ranks[imported]})"
                )
    return found


def test_modules_import_only_lower_ranks():
    sources = {module_name(p): (p.read_text(), p.name == "__init__.py") for p in MODULES}
    assert len(sources) > 10
    assert not violations(sources, RANKS)


@pytest.mark.parametrize(
    ("name", "source", "imported"),
    [
        ("functa.siren", "import functa.train", "functa.train"),
        ("functa.siren", "from functa import train as t", "functa.train"),
        ("functa.siren", "def f():\n    from functa.train import run", "functa.train"),
        ("functa.siren", "from . import train", "functa.train"),
        ("functa.data.images", "from ..train import run", "functa.train"),
        ("functa.data.images", "from .pipeline import x", "functa.data.pipeline"),
        ("functa.field", "from functa import checkpoint", "functa.checkpoint"),
        ("functa.tasks.generation", "from functa.tasks import classification", "functa.tasks.cl"),
        ("functa.main", "from configs import common", "configs"),
        ("functa.main", "import tensorflow as tf", "tensorflow"),
        ("functa.utils", "", "functa.utils has no rank"),
    ],
)
def test_an_upward_import_is_found(name, source, imported):
    (sentence,) = violations({name: (source, False)}, RANKS)
    assert imported in sentence


def test_downward_imports_are_allowed():
    source = "import jax\nfrom functa import coords, rng\nfrom functa.data import images\nfrom . import siren"
    assert not violations({"functa.train": (source, False)}, RANKS)
    package = {"functa.tasks": ("from functa.rng import STREAMS\nfrom .. import coords", True)}
    assert not violations(package, RANKS)


def test_modules_stay_short():
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert not too_long, "split by mathematics or by stage"


# Folders of one machine, package indexes of one site, leftovers, and the words that others use for
# ours.
MACHINE = re.compile(
    r"(?<![\w.~/])/(?:work|root|home|opt|mnt|Users)/\w|\.pyenv|index-url|find-links|trusted-host"
)
WORDS = re.compile(r"\b(?:TODO|FIXME|XXX|omega|hidden_dim|rng2|base_net|meta_train)\b")
FOLDERS = ("functa", "configs", "tools", "launch", ".ci", "docs")


def scanned():
    files = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.cfg"), *ROOT.glob("*.toml")]
    return [
        p
        for p in files
        if p.suffix in ("", ".py", ".sh", ".md", ".cfg", ".toml", ".html", ".css", ".js")
    ]


def faults(text):
    return [match.group() for match in (*MACHINE.finditer(text), *WORDS.finditer(text))]


def test_files_name_no_machine_and_no_foreign_word():
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in scanned()}
    assert len(texts) > 20
    found = {name: faults(text) for name, text in texts.items()}
    assert not {name: words for name, words in found.items() if words}


def test_machines_and_foreign_words_are_found():
    assert faults("cd /work/main") == ["/work/m"]
    assert faults("pip install --extra-index-url=x  # TODO") == ["index-url", "TODO"]
    assert faults("def sine(omega): ...") == ["omega"]
    assert not faults("gs://bucket/home/x and ./root/x, runs/work/x, #!/usr/bin/env bash, TODOS")
