import json
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "rayjob.yaml").read_text())
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
RAY_VERSION = PINS["ray"]


def test_cluster_file_fits_rays_own_schema():
    validate_config(prepare_config(CLUSTER))


def test_head_works_not_and_spot_comes_before_on_demand():
    types = CLUSTER["available_node_types"]
    assert types[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    spot, on_demand = types["embed_spot"], types["embed_on_demand"]
    market = {"InstanceMarketOptions": {"MarketType": "spot"}}
    assert spot["node_config"] == on_demand["node_config"] | market
    assert spot["priority"] > on_demand["priority"]
    assert all(node["node_config"]["IamInstanceProfile"] for node in types.values())
    assert all(node["labels"]["caan-role"] for node in types.values())


def test_nodes_install_the_pinned_packages_and_start_with_the_token():
    assert any("--constraint constraints.txt" in c for c in CLUSTER["setup_commands"])
    for kind in ("head", "worker"):
        start = CLUSTER[f"{kind}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "--object-spilling-directory=/mnt/nvme/spill" in start
    assert "/home/ubuntu/.ray/auth_token" in CLUSTER["file_mounts"]


def test_both_files_and_the_page_name_the_pinned_ray():
    spec = RAYJOB["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == RAY_VERSION
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f"ray-{RAY_VERSION}")
        assert container["resources"]["limits"] == container["resources"]["requests"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert RAYJOB["spec"]["entrypoint"].startswith("python -m jobs.")
    for name in ("cluster.yaml", "docs/cluster.md"):
        assert f"Ray {RAY_VERSION}" in (ROOT / name).read_text()


def test_dashboard_asks_for_counts_that_the_stages_give():
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_caan_(\w+)_total", target["expr"])
    }
    assert asked <= {
        *("videos", "segments", "frames", "faces", "video_seconds", "bytes", "status"),
        *("seconds", "pictures", "batch_places"),
    }


def closure(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """The packages that installing `name` brings, with their versions here."""
    found.setdefault(canonicalize_name(name), metadata.version(name))
    for text in metadata.requires(name) or ():
        needed = Requirement(text)
        marker = needed.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if canonicalize_name(needed.name) not in found or needed.extras:
            closure(needed.name, frozenset(needed.extras), found)


def test_everything_that_the_nodes_install_is_pinned_to_what_is_tested_here():
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    found: dict[str, str] = {}
    closure("caan", frozenset(), found)
    closure("boto3", frozenset(), found)
    del found["caan"]
    assert len(found) > 80
    assert found == {name: pins.get(name) for name in found}


@pytest.mark.slow
def test_set_up_commands_run_in_a_fresh_environment(tmp_path):
    """As they stand, but that pip leaves out what the packages need in turn: that is gigabytes."""
    copy = tmp_path / "caan"
    copy.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("caan", "jobs"):
        shutil.copytree(ROOT / name, copy / name)
    variables = {**os.environ, "HOME": str(tmp_path), "PIP_NO_DEPS": "1"}
    variables.pop("PYTHONPATH", None)
    for command in CLUSTER["setup_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        if "sudo" in command and "command -v" not in command:
            continue  # disks are the node's own
        subprocess.run(["bash", "-c", command], env=variables, check=True)
    found = {
        canonicalize_name(package.metadata["Name"]): package.version
        for package in metadata.distributions(path=map(str, copy.glob(".venv/lib/*/site-packages")))
    }
    assert {"caan", "boto3"} <= set(found)
    assert set(found) <= {"caan", "boto3", "pip", "setuptools"}
    assert found["boto3"] == PINS["boto3"]
