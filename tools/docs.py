"""Writes docs/CONFIGS.md from configs/common.py, and docs/API.md from the docstrings of the Python API.

python -m tools.docs            writes both files
python -m tools.docs --check    exit status 1 if a file is not up to date
"""

import argparse
import ast
import inspect
import io
import json
import pathlib
import sys
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import functa
from functa.configs import common
from functa.data.functaset.split import FunctasetSplit
from functa.data.image_split import ImageSplit
from functa.pipeline.trained_run import TrainedRun
from functa.runtime.config import flatten, to_dict

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = ("mesh", "data", "field", "inner_loop", "meta_learn", "encode", "classify", "generate")
CONFIGS_INTRODUCTION = """# Configs

For users who change a setting. The keys below are those of `configs/common.py` with their default values;
a config such as `configs/digits.py` changes some of them. `--config.KEY=VALUE` changes a value of one
run, and a wrong key or type is refused. This page is written by `python -m tools.docs`.
"""
API_INTRODUCTION = """# Python API

For programs and notebooks that use a trained run. `import functa` gives the functions below; arrays go
in and come out. This page is written by `python -m tools.docs` from the docstrings.
"""


def config_page() -> str:
    """docs/CONFIGS.md: one table for each section of the config."""
    comments = key_comments((ROOT / "configs" / "common.py").read_text())
    config = to_dict(common.base())
    sections = {"": {key: value for key, value in config.items() if not isinstance(value, dict)}}
    sections |= {name: config[name] for name in SECTIONS}
    lines = [CONFIGS_INTRODUCTION]
    for section, values in sections.items():
        lines += [
            f"## {section or 'Top level'}",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, value in flatten(values).items():
            first, _, last = key.partition(".")
            if first == "model":
                continue
            places = [
                (section, key),
                (first, last),
                ("intervals", key),
                (section, first),
                (section, ""),
            ]
            meaning = next(filter(None, (comments.get(place) for place in places)), "")
            name = f"{section}.{key}" if section else key
            lines.append(f"| `{name}` | `{json.dumps(value)}` | {meaning} |")
        lines.append("")
    lines += [
        "## Models",
        "",
        "Values of `classify.model` and `generate.model`, made by functions of",
    ]
    lines += [
        "`configs/common.py`.",
        "",
        "| function | keys and defaults | model |",
        "|---|---|---|",
    ]
    factories = ("transformer", "convnext", "mlp", "dit", "unet", "denoising_mlp")
    for name in factories:
        function = getattr(common, name)
        text = json.dumps(to_dict(function()))[1:-1].replace('"', "")
        lines.append(f"| `{name}()` | {text} | {inspect.getdoc(function)} |")
    return "\n".join(lines) + "\n"


def key_comments(source: str) -> dict[tuple[str, str], str]:
    """{(section, key): comment} of the keywords in a config file.

    A section is that of `config.SECTION = ...`, or the name of the function or constant without
    underscores. A comment stands behind the value, or in the lines before the key. The key "" has the
    comment before the section.
    """
    comments = _comments_by_line(source)
    found: dict[tuple[str, str], str] = {}
    for section, node in _sections(ast.parse(source)):
        found[section, ""] = _comment(comments, node.lineno, node.lineno)
        for keyword in ast.walk(node):
            if isinstance(keyword, ast.keyword) and keyword.arg:
                value = keyword.value
                text = _comment(comments, value.lineno, value.end_lineno or value.lineno)
                found.setdefault((section, keyword.arg), text)
    return found


def _comment(comments: dict[int, tuple[str, bool]], first: int, last: int) -> str:
    """The comment lines before line `first` and the comment behind line `last`."""
    lines: list[str] = []
    line = first - 1
    while comments.get(line, ("", False))[1]:
        lines.insert(0, comments[line][0])
        line -= 1
    return " ".join([*lines, comments.get(last, ("", False))[0]]).strip()


def _comments_by_line(source: str) -> dict[int, tuple[str, bool]]:
    """{line: (comment, whether the line has nothing else)}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _sections(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "base":
            for line in statement.body:
                if isinstance(line, ast.Assign):
                    yield ast.unparse(line.targets[0]).partition(".")[2], line
        elif isinstance(statement, ast.FunctionDef):
            yield statement.name.strip("_"), statement


def api_page() -> str:
    """docs/API.md: the signature and docstring of every public function and method."""
    lines = [API_INTRODUCTION, "## Functions", ""]
    for name in functa.__all__:
        lines += _entry(f"functa.{name}", getattr(functa, name))
    for owner in (TrainedRun, FunctasetSplit, ImageSplit):
        lines += [f"## {owner.__name__}", "", "```text", inspect.getdoc(owner) or "", "```", ""]
        for name, member in vars(owner).items():
            function = getattr(member, "fget", None) or getattr(member, "func", None) or member
            if not name.startswith("_") and callable(function) and inspect.getdoc(function):
                is_property = function is not member
                lines += _entry(f"{owner.__name__}.{name}", function, is_property=is_property)
    return "\n".join(lines)


def _entry(name: str, function: Any, *, is_property: bool = False) -> list[str]:
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.name != "self"]
    call = "" if is_property else str(signature.replace(parameters=shown)).replace("'", "")
    return [f"### `{name}{call}`", "", "```text", inspect.getdoc(function) or "", "```", ""]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    status = 0
    for name, text in {"CONFIGS.md": config_page(), "API.md": api_page()}.items():
        path = ROOT / "docs" / name
        if args.check and (not path.exists() or path.read_text() != text):
            print(f"docs/{name} is not up to date: run python -m tools.docs", file=sys.stderr)
            status = 1
        elif not args.check:
            path.write_text(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
