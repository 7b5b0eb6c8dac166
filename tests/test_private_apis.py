"""Private names of other packages: each stands in one file, and exists in the version allowed."""

import ast
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn

from fsmis.segmenters.sam2 import build_sam2
from fsmis.segmenters.transformers_loading import MULTIPLES, import_transformers

PACKAGE = Path(__file__).parents[1] / "fsmis"
OF_SAM2 = {
    "_encode_new_memory",
    "_forward_sam_heads",
    "_prepare_memory_conditioned_features",
    "_use_mask_as_output",
    "_use_multimask",
}
OF_TRANSFORMERS = {
    "_encode_new_memory",
    "_gather_memory_frame_outputs",
    "_get_object_pointers",
    "_process_object_pointers",
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
    assert files_that_name(OF_SAM2 - OF_TRANSFORMERS) == {"segmenters/steps.py"}
    assert private_names_of_the_model("segmenters/steps.py") == OF_SAM2


def private_names_of_the_model(file: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse((PACKAGE / file).read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value) in ("self.model", "model")
    }


@pytest.mark.parametrize("model", MULTIPLES)
def test_transformers(model):
    network = getattr(import_transformers(), f"{model}Model")
    assert all(callable(getattr(network, name)) for name in OF_TRANSFORMERS)
    named = files_that_name(OF_TRANSFORMERS - OF_SAM2)
    assert named == {"segmenters/transformers_models.py"}
    assert private_names_of_the_model(*named) == OF_TRANSFORMERS


def test_hydra():
    assert callable(BasicSweeper.split_arguments)
    assert "_return_value" in JobReturn.__dataclass_fields__
    assert files_that_name(OF_HYDRA) == {"runs/sweep.py"}
    internal = [p for p in PACKAGE.rglob("*.py") if "hydra._internal" in p.read_text()]
    assert [str(path.relative_to(PACKAGE)) for path in internal] == ["runs/sweep.py"]
