"""Rules for the whole project: imports, sizes, docstrings, and the names in the documents."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command
from typer.testing import CliRunner

from recsys.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "serving", "recsys", "experiments")
SOURCES = sorted(path for name in (*PACKAGES, "data", "benchmarks") for path in (ROOT / name).rglob("*.py"))
PACKAGE_SOURCES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PACKAGES]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
VERBS = get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "pandas", "mlflow", "pyarrow", "matplotlib", "sklearn", "scipy")
MAX_LINES = 400
MAX_BYTES = 250_000


def name_of(path: Path) -> str:
    """Path of a file in the project, for the name of a test and for messages."""
    return path.relative_to(ROOT).as_posix()


def blocked(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process where the heavy packages cannot be imported, as where they are not installed."""
    hook = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
"""
    return subprocess.run([sys.executable, "-c", hook + code], capture_output=True, text=True, cwd=ROOT)


def modules_of(package: str) -> list[str]:
    """Dotted names of a package's modules."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / package).rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("package", ["features", "serving"])
def test_every_module_imports_without_the_heavy_packages(package):
    done = blocked(f"import importlib\nfor name in {modules_of(package)!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_explains_itself(verb):
    result = CliRunner().invoke(app, [verb, "--help"] if verb else ["--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_the_command_explains_itself_without_the_heavy_packages():
    for verb in ("score", "verify", "prepare", "train"):
        done = blocked(f"sys.argv = ['muxrec', '{verb}', '--help']\nfrom experiments.__main__ import main\nmain()")
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_training_without_its_packages_is_one_line_with_the_remedy():
    arguments = "['muxrec', 'train', 'final_mlp', '--data', 'd', '--out', 'o']"
    absent = "import importlib.util\nimportlib.util.find_spec = lambda name, package=None: None"
    done = blocked(f"{absent}\nsys.argv = {arguments}\nfrom experiments.__main__ import main\nmain()")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["muxrec: training needs its packages; found no torch; make env"]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has none"
    bare = [".".join(names) for names in undocumented(tree, ())]
    module = name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert [name for name in bare if not is_inherited(module, name)] == []


def undocumented(node: ast.AST, parents: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Names of the public classes, functions and methods without their own docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            names = (*parents, child.name)
            if not ast.get_docstring(child) and not is_setter(child):
                yield names
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, names)


def is_setter(node: ast.AST) -> bool:
    """True if this is the second half of a property, whose docstring is at the first."""
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in getattr(node, "decorator_list", []))


def is_inherited(module: str, name: str) -> bool:
    """True if a name is a method that overrides one with a docstring."""
    *owners, last = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    return bool(owners) and not inspect.isclass(getattr(owner, last)) and bool(inspect.getdoc(getattr(owner, last)))


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=name_of)
def test_packages_neither_print_nor_pickle(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "torch.load", "torch.save"), f"line {node.lineno}"
    assert not imported & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_no_large_file_is_kept():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("no git checkout; to have it: git clone")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    assert [name_of(path) for path in files if path.is_file() and path.stat().st_size > MAX_BYTES] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = path.parent / target if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors_of(file), link


def anchors_of(path: Path) -> set[str]:
    """Anchors that a page of Markdown gets from its headings."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(path: Path) -> list[list[str]]:
    """Words of each `muxrec VERB ...` in the code of a document; a command may go on after a backslash."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    code = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = re.findall(r"(?:^|[\s;&|(])muxrec +([a-z]\S*[^\n;&|#)]*)", "\n".join(code))
    return [line.split() for line in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_name_verbs_and_options_that_exist(path):
    for verb, *words in commands_of(path):
        assert verb in VERBS, f"muxrec {verb}"
        known = {name for parameter in VERBS[verb].params for name in (*parameter.opts, *parameter.secondary_opts)}
        options = {word.partition("=")[0].strip("[]") for word in words if word.strip("[").startswith("--")}
        assert options <= {*known, "--help"}, f"muxrec {verb}"


def test_the_readme_names_every_verb():
    assert {words[0] for words in commands_of(ROOT / "README.md")} >= set(VERBS)


def test_the_layout_names_every_folder():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in PACKAGE_SOURCES}
    assert set(re.findall(r"^    ([a-z/]+)/ ", text, flags=re.MULTILINE)) >= folders


def test_constraints_fit_the_requirements():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = {name.lower().replace("_", "-"): version for name, version in pairs}
    assert not {"torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "muxrec", "pip", "setuptools"} & set(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for name in ("train-core", "server", "dev") for line in extras[name]]
    for requirement in [*wanted, *map(Requirement, project["dependencies"])]:
        assert pinned[requirement.name.lower().replace("_", "-")] in requirement.specifier, requirement


def test_the_changelog_knows_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == version
