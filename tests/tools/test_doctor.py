"""The doctor finds what is broken, says how to mend it and never breaks itself."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from fsmis import cli, source
from fsmis.tools import doctor


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path)
    return tmp_path / "sam2_mini.safetensors"


def test_broken_checkpoint_fails_with_a_fix(shipped: Path) -> None:
    assert doctor.embedded_checkpoint()[0].status == "fail"
    shipped.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (finding,) = doctor.embedded_checkpoint()
    assert finding.status == "fail" and "repository" in finding.fix


def test_whole_checkpoint_is_named_with_its_hash(shipped: Path) -> None:
    save_file({"weight": np.ones(3, np.float32)}, shipped)
    (finding,) = doctor.embedded_checkpoint()
    assert finding.status == "ok" and "1 tensors, SHA-256" in finding.detail


def test_installed_packages_pass() -> None:
    findings = doctor.torch_fit() + doctor.sam2_imports()
    assert [finding.status for finding in findings] == ["ok", "ok"]


def test_torch_and_torchvision_of_two_releases_fail_with_a_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    (finding,) = doctor.torch_fit()
    assert finding.status == "fail" and "torchvision::nms does not exist" in finding.detail
    assert "constraints.txt" in finding.fix


def test_every_published_checkpoint_is_looked_for() -> None:
    assert {finding.status for finding in doctor.sam2_weights()} <= {"ok", "warn"}


def test_damaged_lpips_backbone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert {finding.status for finding in doctor.lpips_backbones()} == {"warn"}
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth").write_text("<html>")
    statuses = {finding.name: finding.status for finding in doctor.lpips_backbones()}
    assert statuses["LPIPS alex backbone"] == "fail" and statuses["LPIPS vgg backbone"] == "warn"


def test_exit_code_says_whether_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("libfoo.so: not found")

    monkeypatch.setattr(doctor, "CHECKS", [doctor.git, doctor.disk_space])
    doctor.main([])
    monkeypatch.setattr(doctor, "CHECKS", [broken, doctor.disk_space])
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "libfoo.so: not found" in shown and shown.count("disk") == 2


def test_no_git_and_no_checkout_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "__file__", str(tmp_path / "source.py"))
    assert source.git_state() is None
    assert doctor.git()[0].status == "warn"
    assert source.code_version() in (source.package_version("fsmis"), "unknown")
    monkeypatch.setenv("PATH", "")
    assert source.git_state() is None


def test_feature_cache_is_measured_where_runs_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = doctor.feature_cache()
    assert finding.detail.startswith("results/runs/.cache, 0.0 of 10 GB, ")
    assert not any(tmp_path.iterdir())
    entry = tmp_path / "results/runs/.cache/ab/cd.features"
    entry.parent.mkdir(parents=True)
    with entry.open("wb") as file:
        file.truncate(2_340_000_000)  # takes no disk
    free = SimpleNamespace(free=9e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: free)
    (finding,) = doctor.feature_cache()
    assert (finding.status, finding.fix) == ("ok", "")
    assert finding.detail == "results/runs/.cache, 2.3 of 10 GB, 9 GB free"
    free.free = 4e9
    (finding,) = doctor.feature_cache()
    assert finding.status == "warn" and "3.7 GB more" in finding.fix


def test_feature_cache_without_a_place_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("a file in its way")
    (finding,) = doctor.feature_cache()
    assert finding.status == "warn" and f"{tmp_path / 'results'} is not writable" in finding.detail
    assert "cache.dir=" in finding.fix


def test_feature_cache_may_be_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = shutil.copytree(cli.CONF_DIR, tmp_path / "conf")
    text = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(text.replace("dir: ${results_dir}/.cache", "dir: null"))
    monkeypatch.setattr(cli, "CONF_DIR", conf)
    (finding,) = doctor.feature_cache()
    assert (finding.status, finding.detail) == ("ok", "off (cache.dir=null)")


@pytest.mark.parametrize(
    ("flags", "told"), [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx2 avx512f", False)]
)
def test_a_cpu_that_computes_in_bfloat16_is_told(tmp_path, monkeypatch, flags, told) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    (finding,) = doctor.device()
    assert ("segmenter.precision=bfloat16" in finding.fix) is told
    (tmp_path / "cpuinfo").unlink()  # not Linux
    assert doctor.device()[0].detail.endswith("threads")
