"""The rules of the house: where things live, what may import what, and what must not be in the repository."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ditlab"
# Data flows one way down this list: a folder imports only from itself and from folders above it.
ORDER = (
    "errors", "runtime", "data", "encoders", "models", "diffusion", "pipelines", "interop", "evaluate", "train", "recipes",
    "study", "playground", "cli", "__main__",
)  # fmt: skip
FOLDERS = tuple(name for name in ORDER if (PACKAGE / name).is_dir())
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (  # imported inside functions
    "diffusers", "sklearn", "pyarrow", "zstandard", "huggingface_hub", "matplotlib", "transformers",
)  # fmt: skip
FORBIDDEN = ("torchvision", "timm", "accelerate")


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_every_module_belongs_to_a_known_place():
    places = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert places == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_a_folder_imports_only_from_folders_above_it(path: Path):
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if place == "__init__":
        return  # the package's own door, `ditlab.load`, opens on sample/ when it is called
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "ditlab" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(place), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_modules_are_short_and_well_named(path: Path):
    assert len(path.read_text().splitlines()) <= 320
    assert path.stem not in {"utils", "util", "common", "misc", "helper", "helpers", "core"}
    assert re.fullmatch(r"[a-z_0-9]+", path.stem)


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_heavy_libraries_are_imported_inside_functions_and_some_never(path: Path):
    tree = ast.parse(path.read_text())
    everywhere = {name.split(".")[0] for name in imports(tree)}
    assert not everywhere & set(FORBIDDEN)
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {name.split(".")[0] for name in imports(top)} & set(HEAVY)


def test_the_command_line_starts_without_torch():
    lazy = {"recipe_options.py", "data_options.py", "demo_run.py"}  # imported by the commands that need them
    for path in (path for path in (PACKAGE / "cli").glob("*.py") if path.name not in lazy):
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        inside = {imported.split(".")[1] for imported in imports(top) if imported.startswith("ditlab.")}
        assert inside <= {"__version__", "cli", "errors", "runtime"}
        assert not any(imported.split(".")[0] == "torch" for imported in imports(top))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_its_page_and_its_tests(folder: str):
    assert (ROOT / "docs" / f"{folder}.md").is_file()
    assert list((ROOT / "tests" / folder).glob("test_*.py"))
    assert f"{folder}/" in (ROOT / "README.md").read_text()


def test_prose_of_the_documents_wraps_at_120():
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for block in path.read_text().split("```")[::2]:  # no code
            lines = [line for line in block.splitlines() if not line.startswith(("|", "!"))]
            assert max(map(len, lines), default=0) <= 120, path


def test_every_link_of_the_documents_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tracked_files_are_small_and_speak_of_no_machine():
    files = tracked_files()
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    machine = re.compile(r"(?<![\w.~])/(?:home|root|work|Users)/\w+")
    for path in files:
        if path.suffix in {".py", ".md", ".toml", ".txt", ""}:
            found = machine.search(path.read_text())
            assert found is None, f"{path.name}: {found and found[0]}"
