"""Private names of other packages: each stands in one file, and exists in the version allowed."""

import ast
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn

from fsmis.segmenters.architecture import build_sam2

PACKAGE = Path(__file__).parents[1] / "fsmis"
OF_SAM2 = {
    "_encode_new_memory",
    "_forward_sam_heads",
    "_prepare_memory_conditioned_features",
    "_use_mask_as_output",
    "_use_multimask",
}
OF_HYDRA = {"_return_value", "split_arguments"}


def files_that_name(names: set[str]) -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Attribute) and node.attr in names for node in nodes):
            found.add(str(path.relative_to(PACKAGE)))
    return found


def test_sam2():
    network = build_sam2("sam2_mini.yaml", {})
    assert all(callable(getattr(network, name)) for name in OF_SAM2)
    assert files_that_name(OF_SAM2) == {"segmenters/steps.py"}
    steps = ast.walk(ast.parse((PACKAGE / "segmenters/steps.py").read_text()))
    private = {
        node.attr
        for node in steps
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value) in ("self.model", "model")
    }
    assert private == OF_SAM2


def test_hydra():
    assert callable(BasicSweeper.split_arguments)
    assert "_return_value" in JobReturn.__dataclass_fields__
    assert files_that_name(OF_HYDRA) == {"runs/sweep.py"}
    internal = [p for p in PACKAGE.rglob("*.py") if "hydra._internal" in p.read_text()]
    assert [str(path.relative_to(PACKAGE)) for path in internal] == ["runs/sweep.py"]
