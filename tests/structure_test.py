"""Structure: short modules and functions, a config that only builders read, and no foreign words.

setup.cfg holds the layers of imports.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = [
    path
    for folder in ("functa", "configs", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "functa/configs" not in str(path)
]
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 320, 60
LONG_FUNCTIONS = {  # and why
    "functa/training/loop.py:train": 67,  # the loop in one piece; 30 lines are its docstring
    "functa/training/optimizers.py:make": 72,  # a third is its docstring
    "functa/training/tasks/builders.py:build_meta_learning": 63,  # one Task, argument by argument
}
MAX_CONFIG_FUNCTIONS, MAX_CONFIG_MODULES = 20, 8


def relative(path):
    return str(path.relative_to(ROOT))


def functions():
    """(module, function) of every function, nested ones too."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield relative(path), node


def takes_whole_config(function):
    """Whether a parameter is the whole config: of type ConfigDict, and not called settings."""
    arguments = function.args.args + function.args.kwonlyargs
    return any(
        "ConfigDict" in ast.unparse(argument.annotation or ast.Constant(""))
        and not argument.arg.endswith("settings")
        for argument in arguments
    )


def test_modules_are_short():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_functions_are_short():
    lengths = {
        f"{module}:{function.name}": function.end_lineno - function.lineno + 1
        for module, function in functions()
    }
    limits = {name: LONG_FUNCTIONS.get(name, MAX_FUNCTION_LINES) for name in lengths}
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}
    assert LONG_FUNCTIONS.keys() <= lengths.keys()


def test_few_functions_take_the_whole_config():
    takers = [
        (module, function.name)
        for module, function in functions()
        if module.startswith("functa/") and takes_whole_config(function)
    ]
    assert ("functa/fields/fitter.py", "build_fitter") in takers
    assert len(takers) <= MAX_CONFIG_FUNCTIONS, takers
    assert len({module for module, _ in takers}) <= MAX_CONFIG_MODULES, takers


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
    assert faults("cd /root/project") == ["/root/p"]
    assert faults("pip install --extra-index-url=x  # TODO") == ["index-url", "TODO"]
    assert faults("def sine(omega): ...") == ["omega"]
    assert not faults("gs://bucket/home/x and ./root/x, runs/work/x, #!/usr/bin/env bash, TODOS")
