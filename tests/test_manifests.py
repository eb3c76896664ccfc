"""The manifests of launch/k8s, launch/sky and .github: by their schemas, without secrets, commands that compose."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from verl_dra.config import prepare
from verl_dra.embedding.model_path import BUNDLED_MODEL

ROOT = Path(__file__).parents[1]
SKYPILOT = "skypilot==0.14.1"
KUBERNETES = ROOT / "launch/k8s"
PATHS = {"/opt/verl_dra/recipes": f"{ROOT}/recipes", "$repository": str(ROOT)}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


STRING, INTEGER, BOOLEAN, ANYTHING = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {}
STRINGS = {"type": "object", "additionalProperties": STRING}
# Fields of ray.io/v1 that KubeRay 1.6 and 1.7 both know, written down by hand: no package carries the resource's own
# schema. Pods are Kubernetes' own and are checked by its schema below.
POD = {"type": "object", "required": ["spec"], "properties": {"spec": ANYTHING, "metadata": ANYTHING}}
GROUP = {"rayStartParams": STRINGS, "template": POD, "labels": STRINGS, "resources": STRINGS}
RAY_CLUSTER = closed(
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=closed(**GROUP, serviceType=STRING, enableIngress=BOOLEAN),
    workerGroupSpecs={
        "type": "array",
        "items": {
            **closed(
                **GROUP,
                groupName=STRING,
                replicas=INTEGER,
                minReplicas=INTEGER,
                maxReplicas=INTEGER,
                numOfHosts=INTEGER,
            ),
            "required": ["groupName", "minReplicas", "maxReplicas", "template"],
        },
    },
    enableInTreeAutoscaling=BOOLEAN,
    suspend=BOOLEAN,
)
RAY_JOB = closed(
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=ANYTHING,
    spec=closed(
        entrypoint=STRING,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        backoffLimit=INTEGER,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=INTEGER,
        suspend=BOOLEAN,
        runtimeEnvYAML=STRING,
        metadata=STRINGS,
        rayClusterSpec=RAY_CLUSTER,
        clusterSelector=STRINGS,
    ),
)


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """Of all files, by kind."""
    return {document["kind"]: document for file in KUBERNETES.glob("*.yaml") for document in documents(file)}


def documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text()))


@pytest.fixture(scope="module")
def job(manifests: dict[str, Any]) -> Any:
    return manifests["RayJob"]["spec"]


def test_deleting_the_job_deletes_no_volume() -> None:
    kinds = {file.name: {document["kind"] for document in documents(file)} for file in KUBERNETES.glob("*.yaml")}
    assert kinds == {"rayjob.yaml": {"ConfigMap", "RayJob"}, "volume.yaml": {"PersistentVolumeClaim"}}


def pods(job: Any) -> dict[str, Any]:
    cluster = job["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in {"head": cluster["headGroupSpec"], **groups}.items()}


def test_ray_job_has_only_fields_that_kuberay_knows(manifests: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not installed: jsonschema")
    jsonschema.Draft202012Validator(RAY_JOB).validate(manifests["RayJob"])
    manifests["RayJob"]["spec"]["backOffLimit"] = manifests["RayJob"]["spec"].pop("backoffLimit")
    with pytest.raises(jsonschema.ValidationError, match="backOffLimit"):
        jsonschema.Draft202012Validator(RAY_JOB).validate(manifests["RayJob"])
    manifests["RayJob"]["spec"]["backoffLimit"] = manifests["RayJob"]["spec"].pop("backOffLimit")


def test_the_lines_for_a_cluster_that_is_there_make_a_job(job: Any) -> None:
    """KubeRay (utils/validation.go) refuses `backoffLimit` beside `clusterSelector`, and deletes no such cluster."""
    jsonschema = pytest.importorskip("jsonschema", reason="not installed: jsonschema")
    text = (KUBERNETES / "README.md").read_text()
    (lines,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    of_its_own = ("rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")
    for field in of_its_own:
        assert f"`{field}`" in text
    spec = {key: value for key, value in job.items() if key not in of_its_own} | yaml.safe_load(lines)
    whole = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "x"}, "spec": spec}
    jsonschema.Draft202012Validator(RAY_JOB).validate(whole)
    assert set(spec["clusterSelector"]) == {"ray.io/cluster"}


def test_the_rest_is_of_kubernetes_own_schema(manifests: dict[str, Any], job: Any) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="not installed: kubernetes-validate")
    for kind in ("PersistentVolumeClaim", "ConfigMap"):
        kubernetes.validate(manifests[kind], "1.32", strict=True)
    for name, spec in pods(job).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes.validate(pod, "1.32", strict=True)


def test_every_node_of_the_job_has_what_training_needs(manifests: dict[str, Any], job: Any) -> None:
    for name, spec in pods(job).items():
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory", name
        assert (
            mounts["/work"]["persistentVolumeClaim"]["claimName"]
            == manifests["PersistentVolumeClaim"]["metadata"]["name"]
        )
        assert mounts["/etc/dra"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
        assert spec["securityContext"]["runAsUser"] == 10001, name
        assert container["resources"]["requests"] == container["resources"]["limits"], name
    assert manifests["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert job["entrypoint"] == "bash /etc/dra/train.sh"
    assert job["shutdownAfterJobFinishes"]
    assert job["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_secrets_come_by_reference_alone(job: Any) -> None:
    for spec in pods(job).values():
        for variable in spec["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("TOKEN", "KEY", "SECRET")):
                assert set(variable) == {"name", "valueFrom"}
                assert set(variable["valueFrom"]) == {"secretKeyRef"}


@pytest.mark.parametrize("folder", ["k8s", "sky"])
def test_no_readme_puts_a_secret_on_a_command_line(folder: str) -> None:
    text = (ROOT / "launch" / folder / "README.md").read_text()
    assert not re.search(r"--from-literal|--(secret|env)[ =]\w+=", text)


def overrides(script: str) -> tuple[str, list[str]]:
    """The config's name and the overrides of the command that `script` ends with."""
    command = script.replace("\\\n", " ").strip().splitlines()[-1]
    for path, here in PATHS.items():
        command = command.replace(path, here)
    words = shlex.split(command)
    words = words[words.index("--config-dir") :]
    assert words[:3] == ["--config-dir", f"{ROOT}/recipes/open_rs", "--config-name"]
    return words[3], words[4:]


def checked(tmp_path: Path, script: str, *more: str) -> DictConfig:
    name, given = overrides(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.delenv("VERL_PLATFORM", raising=False)
        with initialize_config_dir(f"{ROOT}/recipes/open_rs", version_base=None):
            config = compose(name, overrides=[*given, *more])
        config.dra.embedding.model = BUNDLED_MODEL  # the recipe's is not on this machine, and there is no hub
        prepare(config)
        validate_config(config, need_reference_policy(config), need_critic(config))
    return config


def test_the_jobs_command_composes_and_fits_its_nodes(tmp_path: Path, manifests: dict[str, Any], job: Any) -> None:
    config = checked(tmp_path, manifests["ConfigMap"]["data"]["train.sh"])
    assert config.trainer.nnodes == 1 + sum(g["replicas"] for g in job["rayClusterSpec"]["workerGroupSpecs"])
    for spec in pods(job).values():
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == config.trainer.n_gpus_per_node
    assert config.trainer.resume_mode == "auto"
    assert config.trainer.save_freq > 0
    assert config.trainer.default_local_dir == "/work/runs/dra-grpo/checkpoints"
    assert config.ray_kwargs.ray_init.address == "auto"


def test_the_jobs_script_is_a_script(tmp_path: Path, manifests: dict[str, Any]) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    (tmp_path / "train.sh").write_text(manifests["ConfigMap"]["data"]["train.sh"])
    done = subprocess.run(["shellcheck", tmp_path / "train.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def sky() -> Any:
    return yaml.safe_load((ROOT / "launch/sky/dra.yaml").read_text())


def test_the_tasks_command_composes(tmp_path: Path, sky: Any) -> None:
    nodes = ("trainer.nnodes=2", "trainer.n_gpus_per_node=8", "+ray_kwargs.ray_init.address=10.0.0.1:6379")
    script = (ROOT / "launch/sky/run.sh").read_text()
    assert all(f"{word.partition('=')[0]}=" in script for word in nodes)
    config = checked(tmp_path, sky["run"], *nodes)
    assert config.trainer.nnodes == sky["num_nodes"]
    assert config.trainer.resume_mode == "auto"
    assert config.trainer.default_local_dir == "/work/runs/dra-grpo/checkpoints"


def test_the_tasks_secrets_are_declared_and_not_filled_in(sky: Any) -> None:
    assert sky["secrets"] == {"RAY_AUTH_TOKEN": None, "HF_TOKEN": None, "WANDB_API_KEY": None}
    assert not [name for name in sky["envs"] if any(word in name for word in ("TOKEN", "KEY", "SECRET"))]


def test_the_tasks_image_is_the_dockerfiles_base(sky: Any) -> None:
    image = sky["resources"]["image_id"].removeprefix("docker:")
    assert f"ARG BASE_IMAGE={image}\n" in (ROOT / "docker/Dockerfile").read_text()


@pytest.fixture(scope="module")
def skypilot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python with SkyPilot, which asks for other versions than the trainer has."""
    folder = tmp_path_factory.mktemp("skypilot")
    uv = Path(sys.executable).with_name("uv")
    python = folder / "bin/python"
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, SKYPILOT], check=True, timeout=600)
    yield python
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("field", "accepted"), [(None, True), ("num_node", False)])
def test_skypilot_reads_the_task(skypilot: Path, tmp_path: Path, sky: Any, field: str | None, accepted: bool) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({**sky, **({field: 2} if field else {})}))
    code = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print(task.name, task.num_nodes, *task.volumes)"
    done = subprocess.run(
        [skypilot, "-c", code, task],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == accepted, done.stderr
    if accepted:
        assert done.stdout.split() == ["dra-grpo", "2", "/work"]
    else:
        assert "num_node" in done.stderr


def test_hosted_runners_do_what_ci_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["tests"]["steps"][-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("form", ["bug", "result"])
def test_an_issue_has_what_the_doctor_says(form: str) -> None:
    body = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())["body"]
    (doctor,) = [field for field in body if field["id"] == "doctor"]
    assert doctor["validations"]["required"]
    assert "verl-dra doctor --json" in doctor["attributes"]["description"]
