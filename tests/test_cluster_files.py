"""cluster.yaml, the Kubernetes manifest, the Serve config, the dashboard and the guide are what Ray, KubeRay and Grafana take."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from actors.placement import Operator, preflight
from syn4seg.config.loading import load
from syn4seg.config.placement import PlacementConfig, PoolConfig, TrainingConfig
from syn4seg.models.sam_files import PUBLISHED, SOURCE

REPOSITORY = Path(__file__).parent.parent
PAPER = REPOSITORY / "syn4seg" / "configs" / "pascal5i.yaml"
GUIDE = (REPOSITORY / "docs" / "cluster.md").read_text()
SECRET = re.compile(r"hf_[A-Za-z]{8}|sk-[A-Za-z0-9]{8}|AKIA[0-9A-Z]{8}|-----BEGIN|[0-9a-f]{64}(?!  sam)|token: [\"']?[0-9a-f]{8}")


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def manifest():
    """Kind -> document of docs/kuberay.yaml."""
    return {d["kind"]: d for d in yaml.safe_load_all((REPOSITORY / "docs" / "kuberay.yaml").read_text())}


def settings_of(command: str) -> list[str]:
    """The `placement.` overrides of a printed command, as `load` takes them."""
    words = shlex.split(command[command.index("syn4seg run") :])[2:]
    return [word for word in words if word.startswith("placement.")]


def printed() -> list[str]:
    """Each command of the guide that runs something."""
    lines = re.sub(r"\\\n\s*", " ", GUIDE).splitlines()
    return [line for line in lines if re.match(r"(ray job submit .*)?syn4seg run", line)]


def entrypoint() -> str:
    """The command of the manifest."""
    job = next(yaml.safe_load_all((REPOSITORY / "docs" / "kuberay.yaml").read_text()))
    return job["spec"]["entrypoint"]


def placement(command: str) -> PlacementConfig:
    """That of a printed command."""
    if "syn4seg run pascal5i" in command:
        return load(PAPER, ["data.root=/mnt/shared/voc", *settings_of(command)]).placement
    return load(None, settings_of(command)).placement


# ------------------------------------------------------------------------------------------------------- cluster.yaml
def test_ray_up_takes_the_cluster_file(cluster):
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    assert prepared["worker_setup_commands"][0].startswith("pip install")


def test_the_cluster_file_pins_this_ray_and_python_and_its_pins_can_be_read(cluster):
    ray, python = Version(version("ray")), re.search(r"py3(\d+)", cluster["docker"]["image"])
    image = re.match(r"rayproject/ray:(\d+\.\d+\.\d+)-py3\d+-gpu$", cluster["docker"]["image"])
    assert image and python and int(python.group(1)) >= 11
    pins = [
        Requirement(re.sub(r"^/\S*?/(\w+)(\[|$)", r"\1\2", text)) for text in re.findall(r'"([^"]+)"', cluster["setup_commands"][0])
    ]
    (pinned,) = (pin for pin in pins if pin.name == "ray")
    assert str(pinned.specifier) == f"=={image.group(1)}"
    assert Version(image.group(1)).release[:2] == ray.release[:2]
    project = next(Requirement(d) for d in _dependencies() if Requirement(d).name == "ray")
    assert pinned.extras == project.extras
    assert project.specifier.contains(image.group(1))


def _dependencies() -> list[str]:
    import tomllib

    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]


def test_workers_are_bounded_have_whole_gpus_and_a_spot_type_with_the_same_card_on_demand(cluster):
    types = cluster["available_node_types"]
    assert "GPU" not in types["head"]["resources"] and "max_workers" not in types["head"]
    workers = {name: node for name, node in types.items() if name != "head"}
    assert sum(node["max_workers"] for node in workers.values()) >= cluster["max_workers"] > 0
    for name, node in workers.items():
        assert 0 <= node["min_workers"] <= node["max_workers"]
        assert node["resources"]["GPU"] > 0
        assert any(key.startswith("accelerator_type:") for key in node["resources"])
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == name.endswith("-spot")
        if spot:
            fallback = workers[name.removesuffix("-spot")]
            assert fallback["resources"] == node["resources"] and fallback["priority"] < node["priority"]
            assert {**fallback["node_config"], "InstanceMarketOptions": {"MarketType": "spot"}} == node["node_config"]


def test_accelerator_names_are_rays_own(cluster):
    from ray.util.accelerators import accelerators

    known = {value for key, value in vars(accelerators).items() if key.startswith("NVIDIA_")}
    for node in cluster["available_node_types"].values():
        named = {key.partition(":")[2] for key in node["resources"] if key.startswith("accelerator_type:")}
        assert named <= known


def test_each_stage_with_a_gpu_stays_on_one_kind_of_card_of_the_cluster_that_it_is_printed_for(cluster, manifest):
    aws = [node["resources"] for node in cluster["available_node_types"].values()]
    spec = manifest["RayJob"]["spec"]["rayClusterSpec"]
    kubernetes = [_declared(group) for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    submitted = [line for line in printed() if line.startswith("ray job submit") and settings_of(line)]
    assert submitted
    for command, nodes in [*((line, aws) for line in submitted), (entrypoint(), kubernetes)]:
        place = placement(command)
        for pool in (place.encoding, place.synthesis, place.labeling, place.refinement, place.training):
            cards = {k for n in nodes if _fits(pool, n) for k in n if k.startswith("accelerator_type:")}
            assert pool.gpus and len(cards) == 1, (command, pool, cards)
        stages = [
            Operator(type(pool), {}, pool, name)
            for name, pool in (("synthesis", place.synthesis), ("labeling", place.labeling), ("refinement", place.refinement))
        ]
        preflight(stages, nodes, place.training)  # all at the same time, on one node of each type


def _fits(pool: PoolConfig | TrainingConfig, node: dict[str, float]) -> bool:
    needs = {"CPU": pool.cpus, "GPU": pool.gpus, **pool.resources}
    needs |= {f"accelerator_type:{pool.accelerator}": 0.001} if pool.accelerator else {}
    return all(node.get(key, 0) >= amount for key, amount in needs.items())


def test_the_cluster_file_is_closed_and_holds_no_secret(cluster):
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert not SECRET.search(text)
    assert "0.0.0.0" not in text
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert not any(re.search("(TOKEN|KEY|SECRET)=", option) for option in cluster["docker"]["run_options"])
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("--disable-usage-stats" in line for line in starts if "ray start" in line)
    assert any("--dashboard-host=127.0.0.1" in line for line in starts)
    for node in cluster["available_node_types"].values():  # without one, Ray's own group opens SSH to everybody
        assert node["node_config"]["SecurityGroupIds"]


def test_weights_come_before_workers_with_the_digest_that_the_package_knows(cluster, manifest):
    from syn4seg.models.hub import IMAGE, TEXT
    from syn4seg.segmenter.resnet import imagenet_weights

    groups = manifest["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pods = [group["template"]["spec"]["initContainers"][0]["command"][-1] for group in groups]
    for commands in (" ".join(cluster["worker_setup_commands"]), *pods):
        assert f"{SOURCE}/{PUBLISHED['vit-h'].file}" in commands and f'"{PUBLISHED["vit-h"].sha256}  ' in commands
        assert all(f'"{part}/*"' in commands for part in (*TEXT, *IMAGE))
        assert f"from {imagenet_weights.__module__} import {imagenet_weights.__name__}" in commands
        assert f"imagenet_weights('{load(PAPER, ['data.root=/']).segmenter.backbone}')" in commands


def test_the_directory_that_the_guide_takes_for_shared_is_mounted_on_every_machine_and_in_its_container(cluster):
    assert "/mnt/shared/voc" in GUIDE
    assert any(option.startswith("--volume=/mnt/shared:/mnt/shared") for option in cluster["docker"]["run_options"])
    (mount,) = (line for line in cluster["initialization_commands"] if "mount -t nfs4" in line)
    assert mount.endswith("fs-00000000000000000.efs.us-west-2.amazonaws.com:/ /mnt/shared")
    types = cluster["available_node_types"].values()
    assert not any("initialization_commands" in node for node in types)  # they would replace those above


def test_the_shared_memory_of_a_container_holds_the_object_store(cluster):
    shared = next(o for o in cluster["docker"]["run_options"] if o.startswith("--shm-size="))
    size = int(re.findall(r"\d+", shared)[0]) * 10**9
    for line in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        for store in re.findall(r"--object-store-memory=(\d+)", line):
            assert int(store) < size


# ------------------------------------------------------------------------------------------------------------ KubeRay
def _declared(group: dict) -> dict[str, float]:
    """Resources that the pods of a group give to Ray: those of the container's limits, and rayStartParams'."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    custom = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0)), **custom}


JOB_KEYS = {
    "entrypoint",
    "runtimeEnvYAML",
    "metadata",
    "jobId",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "suspend",
    "activeDeadlineSeconds",
    "backoffLimit",
    "submissionMode",
    "submitterPodTemplate",
    "submitterConfig",
    "clusterSelector",
    "rayClusterSpec",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "managedBy",
    "deletionStrategy",
    "preRunningDeadlineSeconds",
}
CLUSTER_KEYS = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "authOptions",
    "headServiceAnnotations",
    "suspend",
    "managedBy",
    "gcsFaultToleranceOptions",
    "upgradeStrategy",
}
GROUP_KEYS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "idleTimeoutSeconds",
    "numOfHosts",
    "rayStartParams",
    "resources",
    "labels",
    "scaleStrategy",
    "suspend",
    "template",
}
"""Fields of KubeRay's RayJob (ray.io/v1), checked here because a cluster drops or refuses what it does not know."""


def test_the_manifest_has_the_form_of_a_ray_job(manifest):
    job = manifest["RayJob"]
    assert job["apiVersion"] == "ray.io/v1" and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) <= JOB_KEYS
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] >= 0
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert spec["entrypoint"].split()[:2] == ["syn4seg", "run"] and "entrypointNumGpus" not in spec
    ray = spec["rayClusterSpec"]
    assert set(ray) <= CLUSTER_KEYS
    assert ray["authOptions"] == {"mode": "token"}
    assert ray["enableInTreeAutoscaling"] is True
    assert Version(ray["rayVersion"]).release[:2] == Version(version("ray")).release[:2]
    assert set(ray["headGroupSpec"]) <= {
        "rayStartParams",
        "template",
        "serviceType",
        "headService",
        "enableIngress",
        "labels",
        "resources",
    }
    names = [group["groupName"] for group in ray["workerGroupSpecs"]]
    assert len(set(names)) == len(names) >= 2
    for group in ray["workerGroupSpecs"]:
        assert set(group) <= GROUP_KEYS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_head_pods_have_no_gpu_and_worker_pods_have_one_shared_memory_and_the_same_image(manifest):
    ray = manifest["RayJob"]["spec"]["rayClusterSpec"]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1 and not images.pop().endswith(":latest")
    for group in groups:
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert set(mounts.values()) <= set(volumes)
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert (gpus == 0) == (group is groups[0])
        assert container["resources"]["limits"] == container["resources"]["requests"]
        shared = int(re.findall(r"\d+", volumes[mounts["/dev/shm"]]["emptyDir"]["sizeLimit"])[0]) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) < shared


def test_secrets_reach_pods_by_reference_only_and_only_pods_of_the_job_reach_its_ports(manifest):
    text = (REPOSITORY / "docs" / "kuberay.yaml").read_text()
    assert not SECRET.search(text)
    ray = manifest["RayJob"]["spec"]["rayClusterSpec"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            for variable in container.get("env", ()):
                if re.search("TOKEN|KEY|SECRET", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"] and "value" not in variable
    policy = manifest["NetworkPolicy"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"])  # an empty list would let everybody in


# ----------------------------------------------------------------------------------------------------------- Ray Serve
def test_serve_takes_the_serve_config_and_the_application_takes_its_arguments():
    pytest.importorskip("fastapi", reason="Ray Serve is missing: pip install -e .[serve]")
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    from actors.serving import NAME, application, read_options

    text = (REPOSITORY / "docs" / "serve.yaml").read_text()
    config = yaml.safe_load(text)
    ServeDeploySchema.model_validate(config)
    (app,) = config["applications"]
    (deployment,) = app["deployments"]
    for part, schema in (
        (config, ServeDeploySchema),
        (config["http_options"], HTTPOptionsSchema),
        (app, ServeApplicationSchema),
        (deployment, DeploymentSchema),
    ):
        assert set(part) <= set(schema.model_fields)  # Serve ignores what it does not know
    assert app["import_path"] == f"{application.__module__}:{application.__name__}" and deployment["name"] == app["name"] == NAME
    built = application(app["args"])
    assert built._bound_deployment.name == NAME
    options = read_options(app["args"])
    assert deployment["autoscaling_config"]["target_ongoing_requests"] <= 2 * options.batch
    assert config["http_options"]["host"] == "127.0.0.1" and not SECRET.search(text)


# ------------------------------------------------------------------------------------------------------------ Grafana
OWN_METRICS = {
    "ray_syn4seg_rows_total",
    "ray_syn4seg_busy_seconds_total",
    "ray_syn4seg_rejected_rows_total",
    "ray_syn4seg_queued_rows",
    "ray_syn4seg_actors",
}


def test_our_metrics_are_those_that_the_actors_export():
    source = "".join((REPOSITORY / "actors" / name).read_text() for name in ("guard.py", "metrics.py"))
    for name in OWN_METRICS:  # Ray puts `ray_` before a name, and `_total` behind that of a counter
        assert re.search(rf'"(syn4seg_)?{name.removeprefix("ray_syn4seg_").removesuffix("_total")}"', source), name


def metrics_of_ray() -> set[str]:
    """The metrics that the dashboards shipped with the installed Ray ask for."""
    import ray.dashboard.modules.metrics.dashboards as shipped

    folder = Path(shipped.__file__).parent
    names = {name for file in folder.glob("*_panels.py") for name in re.findall(r"\bray_\w+", file.read_text())}
    return {name for name in names if not name.endswith("_")}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((REPOSITORY / "docs" / "grafana.json").read_text())


def panels(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_every_metric_of_the_dashboard_is_exported_by_us_or_by_ray_and_ours_are_all_shown(dashboard):
    queried = set()
    for panel in panels(dashboard):
        for target in panel["targets"]:
            queried |= set(re.findall(r"\bray_\w+", target["expr"]))
    assert queried <= OWN_METRICS | metrics_of_ray()
    assert queried >= OWN_METRICS
    assert any("gram" in name for name in queried) and "ray_object_store_memory" in queried


def test_counters_are_shown_as_rates_and_panels_are_in_order(dashboard):
    shown = panels(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in shown:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            for name in re.findall(r"\bray_syn4seg_\w+_total\b", target["expr"]):
                assert re.search(rf"(rate|increase)\({name}{{", target["expr"]), target["expr"]
    boxes = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_the_dashboard_lets_one_choose_source_and_run(dashboard):
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert "ray_syn4seg_rows_total" in variables["run"]["definition"]


# -------------------------------------------------------------------------------------------------------------- guide
def test_every_file_that_the_guide_names_is_there():
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", GUIDE):
        assert (REPOSITORY / "docs" / name).exists(), name


def test_the_placements_of_the_guide_are_configurations_that_load():
    commands = [*printed(), entrypoint()]
    assert sum(bool(settings_of(command)) for command in commands) >= 3
    for command in commands:
        placement(command)
