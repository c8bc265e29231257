"""The floors of the house, and that no trainer knows a method by its name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "surefoot"

# folder or file -> what of ours it may import
FLOORS = {
    "errors.py": set(),
    "rollouts.py": {"errors"},
    "specs.py": {"errors"},
    "files.py": {"errors"},
    "cache.py": {"files"},
    "kernels": {"cache", "files"},
    "parts.py": {"errors", "rollouts"},
    "method.py": {"errors", "rollouts", "parts", "objective", "rollout"},
    "objective": {"errors", "rollouts", "parts", "objective"},
    "exact": {"errors", "exact"},
    "rollout": {"errors", "rollouts", "parts", "rollout", "policies", "kernels"},
    "policies": {"errors", "rollouts", "specs", "cache", "files", "kernels", "objective", "policies", "rollout"},
    "tasks": {"errors", "rollouts", "rollout", "specs", "cache", "files", "policies", "tasks"},
    "search": {"errors", "rollouts", "rollout", "policies", "search"},
    "evaluation": {"errors", "rollouts", "objective", "rollout", "tasks", "evaluation"},
    "methods": {"errors", "rollouts", "parts", "method", "objective", "methods", "rollout", "exact", "evaluation"},
}
MAY_NOT = {"training": {"methods", "claims", "adapters", "cli"}, "stability": {"cli"}, "claims": {"cli"}}


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surefoot."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("surefoot.")}
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_stands_on_those_below_it(floor):
    place = ROOT / floor
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files, f"{floor} is gone; change the table of floors"
    for path in files:
        above = _imports(path) - FLOORS[floor]
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


@pytest.mark.parametrize("floor", MAY_NOT)
def test_what_a_floor_may_not_import(floor):
    for path in (ROOT / floor).rglob("*.py"):
        above = _imports(path, top_level_only=True) & MAY_NOT[floor]
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_no_branch_on_a_methods_name():
    """Nothing under training, policies, rollout or tasks compares anything with a method's slug."""
    slugs = {p.stem.replace("_", "-") for p in (ROOT / "methods").glob("*/*.py")}
    for folder in ("training", "policies", "rollout", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    words = {
                        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                    }
                    assert not words & slugs, f"{path}: line {node.lineno} compares with {words & slugs}"
