"""share.sh, and what gke.sh makes of it: an indexed job in a queue."""

import json
import os
import subprocess
import sys

import jsonschema
import pytest
import yaml

from .conftest import SCRIPTS
from .test_gke import GKE, expanded, strict

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('TPU_WORKER_HOSTNAMES')]))"
ONE_HOST = [*GKE, "--topology", "2x4"]
SWEEP = ["--", "lmjax", "sweep", "a b.py", "--workdir", "/bucket/{share}"]


def shared(*arguments, **environment):
    command = ["bash", str(SCRIPTS / "share.sh"), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_a_share_is_the_index_plus_one_and_stands_where_its_number_is_asked_for():
    words = [sys.executable, "-c", SHOW, "$HOME {share}", "*", "/b/{share}/{share}"]
    done = shared("--shares", "12", "--index-from", "AT", "--", *words, AT="10")
    assert json.loads(done.stdout) == [["$HOME 11", "*", "/b/11/11", "--shard", "11/12"], None]


def test_a_share_is_alone_where_the_cluster_names_the_hosts_of_all():
    done = shared(
        *("--shares", "2", "--index-from", "AT", "--", sys.executable, "-c", SHOW),
        AT="0",
        TPU_WORKER_HOSTNAMES="a,b",
    )
    assert json.loads(done.stdout) == [["--shard", "1/2"], "localhost"]


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_the_exit_code_of_a_share_is_that_of_its_command(code):
    done = shared("--shares", "1", "--index-from", "AT", "--", "bash", "-c", f"exit {code}", AT="0")
    assert done.returncode == code


@pytest.mark.parametrize(
    ("arguments", "index", "message"),
    [
        (["--shares", "2", "--index-from", "AT", "--", "a"], "2", "AT = 2: expected less than --shares 2"),
        (["--shares", "2", "--index-from", "AT", "--", "a"], "", "AT = '': expected the index of this share, from 0"),
        (["--shares", "2", "--index-from", "AT", "--", "a"], "08", "AT = '08': expected the index"),
        (["--index-from", "AT", "--", "a"], "0", "--shares is missing"),
        (["--shares", "2", "--index-from", "AT"], "0", "no command"),
        (["--shares", "2", "--index-from", "AT", "--", "a", "--shard", "1/2"], "0", "--shard: every share is given"),
        (["--shares", "2", "--index-from", "a b", "--", "a"], "0", "expected the name of an environment variable"),
    ],
)
def test_a_share_that_cannot_be_is_refused(arguments, index, message):
    done = shared(*arguments, AT=index)
    assert done.returncode == 2 and message in done.stderr


def test_shares_are_one_indexed_job_whose_pods_run_the_same_command(cloud):
    code, _, calls = cloud("gke.sh", [*ONE_HOST, "--shares", "4", "--at-once", "2", "--queue", "tpu", *SWEEP])
    assert code == 0 and [call for call, _ in calls] == [["kubectl", "apply", "-f", "-"]]
    manifest = yaml.safe_load(calls[0][1])
    assert manifest["metadata"] == {"name": "gpt2", "labels": {"kueue.x-k8s.io/queue-name": "tpu"}}
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 2)
    container = job["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    script, *arguments = [expanded(word) for word in container["command"]][1:]
    assert script == "/lmjax/tpu_setup/share.sh"  # as tpu_setup/Dockerfile copies it
    at = arguments.index("lmjax")
    done = shared(*arguments[:at], sys.executable, "-c", SHOW, *arguments[at + 1 :], JOB_COMPLETION_INDEX="3")
    assert json.loads(done.stdout)[0] == ["sweep", "a b.py", "--workdir", "/bucket/4", "--shard", "4/4"]


def test_a_failed_row_or_a_mistake_ends_its_share_alone_and_a_preemption_counts_as_no_failure(cloud):
    _, _, calls = cloud("gke.sh", [*ONE_HOST, "--shares", "2", "--restarts", "5", *SWEEP])
    spec = yaml.safe_load(calls[0][1])["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    exit_codes = {"containerName": "lmjax", "operator": "In", "values": [1, 2]}
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": exit_codes},
    ]
    assert (job["backoffLimitPerIndex"], job["template"]["spec"]["restartPolicy"]) == (5, "Never")
    assert "maxFailedIndexes" not in job and "backoffLimit" not in job
    assert spec["failurePolicy"] == {"maxRestarts": 0}  # a new start would do the finished shares again


@pytest.mark.data
@pytest.mark.parametrize("options", [[], ["--spot", "--queue", "tpu", "--at-once", "1"], ["--reservation", "r"]])
def test_an_indexed_job_is_one_that_a_cluster_takes(cloud, shared_data, options):
    schema = strict(json.loads((shared_data("kubernetes_crds") / "jobset_v1alpha2.json").read_text()))
    code, _, calls = cloud("gke.sh", [*ONE_HOST, "--shares", "3", *options, *SWEEP])
    assert code == 0
    manifest = yaml.safe_load(calls[0][1])
    assert list(jsonschema.Draft7Validator(schema).iter_errors(manifest)) == []
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimitPerShare"] = 1
    assert len(list(jsonschema.Draft7Validator(schema).iter_errors(manifest))) == 1


QUEUE = ["--queue", "tpu", "--quota", "64", "--type", "v5e", "--topology", "2x4"]
KINDS = {"ResourceFlavor": "resourceflavors", "ClusterQueue": "clusterqueues", "LocalQueue": "localqueues"}


@pytest.mark.data
@pytest.mark.parametrize("options", [[], ["--spot"]])
def test_a_queue_is_one_that_a_cluster_takes(cloud, shared_data, options):
    code, _, calls = cloud("gke.sh", [*QUEUE, *options])
    assert code == 0
    manifests = list(yaml.safe_load_all(calls[0][1]))
    assert [manifest["kind"] for manifest in manifests] == list(KINDS)
    for manifest in manifests:
        file = shared_data("kubernetes_crds") / f"kueue_{KINDS[manifest['kind']]}_v1beta2.json"
        check = jsonschema.Draft7Validator(strict(json.loads(file.read_text())))
        assert list(check.iter_errors(manifest)) == []
        assert len(list(check.iter_errors(manifest | {"spec": manifest["spec"] | {"quota": 1}}))) == 1


def test_a_queue_holds_the_chips_of_the_slices_that_the_shares_ask_for(cloud):
    _, _, calls = cloud("gke.sh", [*QUEUE, "--spot"])
    flavor, cluster, local = yaml.safe_load_all(calls[0][1])
    group = cluster["spec"]["resourceGroups"][0]
    assert group["coveredResources"] == ["google.com/tpu"]
    of_flavor = group["flavors"][0]
    assert of_flavor["name"] == flavor["metadata"]["name"]
    assert of_flavor["resources"] == [{"name": "google.com/tpu", "nominalQuota": 64}]
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    _, _, calls = cloud("gke.sh", [*ONE_HOST, "--spot", "--shares", "2", "--queue", "tpu", *SWEEP])
    manifest = yaml.safe_load(calls[0][1])
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == flavor["spec"]["nodeLabels"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GKE, "--shares", "2", *SWEEP], "--topology 4x4: a slice of 4 hosts, and every share runs on one"),
        ([*ONE_HOST, "--shares", "2", "--slices", "2", *SWEEP], "leave out --slices"),
        ([*ONE_HOST, "--shares", "2", *SWEEP[:-1], "/bucket/x"], "every share needs a workdir of its own"),
        ([*ONE_HOST, "--shares", "2", *SWEEP, "--shard=1/2"], "every share is given its own --shard"),
        ([*ONE_HOST, "--shares", "0", *SWEEP], "--shares 0: expected a whole number above 0"),
        ([*ONE_HOST, "--shares", "2", "--sweep", "/dev/null"], "splits one command"),
        ([*ONE_HOST, "--at-once", "2", *SWEEP], "--at-once 2: expected --shares"),
        ([*ONE_HOST, "--queue", "a b", *SWEEP], "--queue 'a b': expected lower-case letters"),
        (["--quota", "8", "--type", "v5e", "--topology", "2x4"], "--quota 8: expected --queue"),
    ],
)
def test_shares_that_cannot_be_are_refused_before_anything_is_called(cloud, arguments, message):
    code, output, calls = cloud("gke.sh", arguments)
    assert code == 2 and message in output and calls == []
