#!/usr/bin/env python3
"""Measures the strength of the tests: counts small random faults in the code that the fast tests see.

    tools/experiments/mutation_testing.py --count=60 --seed=0 --jobs=2 --out=mutations.jsonl

A fault replaces one operator, comparison or constant, or swaps two arguments. The faults are spread
evenly over groups of modules. Each fault is tested in a copy of the checkout, until the first test
fails: tests of the module first, then those that import it, then all others. The same command
resumes. The last lines name the faults that no test has seen.
"""

import argparse
import ast
import functools
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent import futures
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = (
    "functa/fields/*.py",
    "functa/training/**/*.py",
    "functa/data/functaset/*.py",
    "functa/diffusion/*.py",
    "functa/pipeline/*.py",
)
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

SYMMETRIC = ("max", "maximum", "min", "minimum")  # functions whose arguments may be swapped


class Fault(NamedTuple):
    """One fault: `source` is the whole text of the module `path` with `before` replaced by `after`."""

    path: str
    line: int
    before: str
    after: str
    source: str


class _Sites(ast.NodeVisitor):
    """Collects expressions that can be changed, outside annotations, messages and docstrings."""

    def __init__(self):
        self.nodes: list[ast.expr] = []

    def visit(self, node: ast.AST) -> None:
        skipped = ast.JoinedStr | ast.Raise | ast.AnnAssign | ast.Import | ast.ImportFrom
        if isinstance(node, skipped):
            return
        if isinstance(
            node, ast.FunctionDef | ast.ClassDef
        ):  # without decorators such as dataclass(frozen=True)
            for child in node.body:
                self.visit(child)
            return
        number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
        operator = isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS
        compare = isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS
        call = isinstance(node, ast.Call) and len(node.args) > 1 and _has_ordered_arguments(node)
        if number or operator or compare or call:
            assert isinstance(node, ast.expr)
            self.nodes.append(node)
        self.generic_visit(node)


def _has_ordered_arguments(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    starred = any(isinstance(argument, ast.Starred) for argument in call.args[:2])
    return name not in SYMMETRIC and not starred


def change(node: ast.AST) -> None:
    """Puts a fault into an expression."""
    match node:
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            setattr(node, "op", OPERATORS[type(op)]())  # noqa: B010
        case ast.Compare(ops=ops):
            ops[0] = OPERATORS[type(ops[0])]()
        case ast.Call(args=args):
            args[:2] = reversed(args[:2])


def random_faults(root: pathlib.Path, groups: list[str], count: int, seed: int) -> list[Fault]:
    """Draws `count` faults, as many in each group of modules (globs joined by commas)."""
    rng = random.Random(seed)
    faults = []
    for number, group in enumerate(groups):
        sites = []
        for path in sorted({p for glob in group.split(",") for p in root.glob(glob)}):
            finder = _Sites()
            finder.visit(ast.parse(path.read_text()))
            sites += [(path, index) for index in range(len(finder.nodes))]
        share = count // len(groups) + (number < count % len(groups))
        faults += [_fault(root, path, index) for path, index in rng.sample(sites, share)]
    return faults


def _fault(root: pathlib.Path, path: pathlib.Path, index: int) -> Fault:
    text = path.read_text()
    finder = _Sites()
    finder.visit(ast.parse(text))
    node = finder.nodes[index]
    before = ast.unparse(node)
    change(node)
    after = ast.unparse(node)
    return Fault(
        str(path.relative_to(root)), node.lineno, before, after, _splice(text, node, after)
    )


def _splice(text: str, node: ast.expr, replacement: str) -> str:
    lines = text.encode().split(b"\n")
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    lines[first : last + 1] = [head + b"(" + replacement.encode() + b")" + tail]
    return b"\n".join(lines).decode()


def ordered_tests(root: pathlib.Path, module: str, *, nearest: bool) -> list[str]:
    """Files of tests, those nearest to `module` (a path) first; with `nearest`, not those far away."""
    path = pathlib.Path(module)
    own = f"{path.stem}_test.py"
    imports = (
        f"{'.'.join(path.parts[:-1])} import {path.stem}",
        ".".join((*path.parts[:-1], path.stem)),
    )

    def distance(test: pathlib.Path) -> int:
        if test.name == own:
            return 0
        if any(name in test.read_text() for name in imports):
            return 1
        return 2 if test.parent.name == path.parent.name else 3

    tests = sorted(root.glob("tests/**/*_test.py"), key=lambda test: (distance(test), test))
    return [str(test.relative_to(root)) for test in tests if not nearest or distance(test) < 3]


def require_tests(root: pathlib.Path) -> None:
    """Raises CalledProcessError if pytest cannot collect the tests, which would hide every result."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, check=True)


def first_failure(root: pathlib.Path, fault: Fault, *, timeout: int, nearest: bool) -> str:
    """The first fast test that fails with a fault, or "" if none does."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = pathlib.Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "data_cache")
        shutil.copytree(root, tree, symlinks=True, ignore=ignored)
        (tree / fault.path).write_text(fault.source)
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        tests = ordered_tests(tree, fault.path, nearest=nearest)
        command = [sys.executable, "-m", "pytest", *options, *tests]
        try:
            result = subprocess.run(
                command, cwd=tree, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return "timeout"
    if result.returncode == 0:
        return ""
    lines = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0][:160] if lines else f"exit status {result.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="faults tested at a time")
    parser.add_argument("--timeout", type=int, default=2400, help="seconds for one run of pytest")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="checkout to test")
    parser.add_argument(
        "--nearest",
        action="store_true",
        help="run the nearest tests only: a lower bound, much faster",
    )
    parser.add_argument(
        "--group", action="append", help="globs joined by commas; repeat for more groups"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutations.jsonl"))
    args = parser.parse_args()
    require_tests(args.root)
    faults = random_faults(args.root, args.group or list(GROUPS), args.count, args.seed)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    known = {tuple(json.loads(line)["fault"]) for line in lines}
    todo = [fault for fault in faults if fault[:4] not in known]
    test = functools.partial(first_failure, args.root, timeout=args.timeout, nearest=args.nearest)
    with futures.ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
        results = {pool.submit(test, fault): fault for fault in todo}
        for future in futures.as_completed(results):
            fault = results[future]
            out.write(json.dumps({"fault": fault[:4], "seen_by": future.result()}) + "\n")
            out.flush()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    missed = [row["fault"] for row in rows if not row["seen_by"]]
    print(f"{len(rows) - len(missed)} of {len(rows)} faults seen")
    for path, line, before, after in missed:
        print(f"not seen: {path}:{line}  {before}  ->  {after}")


if __name__ == "__main__":
    main()
