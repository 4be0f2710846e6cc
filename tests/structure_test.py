"""Structure: modules stay short and speak of nothing but the project (setup.cfg holds the layers of imports)."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "functa").rglob("*.py"))
LONGEST_MODULE = 330  # lines
EXCEPTIONS = {"functa.explore.page": 360}  # five panels that share one selection


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_modules_stay_short():
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {
        name: lines
        for name, lines in lengths.items()
        if lines > EXCEPTIONS.get(name, LONGEST_MODULE)
    }
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
