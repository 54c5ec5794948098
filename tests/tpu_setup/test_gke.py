"""gke.sh: the JobSets of a command or of a sweep, as kubectl is sent them."""

import itertools
import json

import jsonschema
import pytest
import yaml

from lmjax.plan.slices import SHAPES

from .conftest import SCRIPTS

GKE = ["--name", "gpt2", "--type", "v5e", "--topology", "4x4", "--image", "host/p/lmjax:1", "--bucket", "my-bucket"]


def test_a_job_set_has_one_pod_per_host_and_the_command_word_for_word(cloud):
    words = ["lmjax", "run", "gpt2", "--name", 'a "b" \\ c', "*"]
    code, _, calls = cloud("gke.sh", [*GKE, "--slices", "3", "--spot", "--", *words])
    assert code == 0 and [call for call, _ in calls] == [["kubectl", "apply", "-f", "-"]]
    manifest = yaml.safe_load(calls[0][1])
    job = manifest["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (3, 4)
    assert pod["containers"][0]["command"] == words
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert "@" not in calls[0][1]


def test_every_line_of_a_sweep_becomes_a_job_set(cloud, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.write_text(
        "# sizes\nlmjax run gpt2:124m --workdir /bucket/small\n\nlmjax run gpt2:355m --workdir '/bucket/a b'"
    )
    code, _, calls = cloud("gke.sh", [*GKE, "--sweep", str(sweep)])
    assert code == 0
    manifests = [yaml.safe_load(stdin) for _, stdin in calls]
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["gpt2-0", "gpt2-1"]
    pods = [m["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"] for m in manifests]
    assert pods[1]["containers"][0]["command"] == ["lmjax", "run", "gpt2:355m", "--workdir", "/bucket/a b"]


def commands(calls):
    """The command of each JobSet that kubectl was sent."""
    jobs = [yaml.safe_load(stdin)["spec"]["replicatedJobs"][0] for _, stdin in calls]
    lists = [job["template"]["spec"]["template"]["spec"]["containers"][0]["command"] for job in jobs]
    return [[expanded(word) for word in words] for words in lists]


def expanded(word, variables=None):
    """A word of a command as Kubernetes hands it to the container: $$ is one $, and $(NAME) a variable that it has."""
    out, at = "", 0
    while at < len(word):
        end = word.find(")", at)
        if word[at : at + 2] == "$$":
            out, at = out + "$", at + 2
        elif word[at : at + 2] == "$(" and end > 0:
            name = word[at + 2 : end]
            out, at = out + (variables or {}).get(name, f"$({name})"), end + 1
        else:
            out, at = out + word[at], at + 1
    return out


def test_kubernetes_replaces_no_variable_of_a_command(cloud):
    words = ["lmjax", "$(HOME) $HOME $$ $", "a\tb\u2028c\u0085d\u2029e"]
    code, _, calls = cloud("gke.sh", [*GKE, "--", *words])
    job = yaml.safe_load(calls[0][1])["spec"]["replicatedJobs"][0]
    command = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert code == 0 and [expanded(word, {"HOME": "/root"}) for word in command] == words


@pytest.mark.parametrize("word", ["a\x1b[2J", "\x01", "a\x7f"])
def test_a_control_character_in_a_command_is_refused(cloud, word):
    code, output, calls = cloud("gke.sh", [*GKE, "--", "lmjax", word])
    assert code == 2 and "a control character in a command" in output and calls == []
    assert word not in output


def test_a_wrong_command_ends_the_job_set_and_everything_else_restarts_it(cloud):
    _, _, calls = cloud("gke.sh", [*GKE, "--", "lmjax"])
    spec = yaml.safe_load(calls[0][1])["spec"]
    assert spec["failurePolicy"] == {
        "maxRestarts": 100,
        "rules": [{"name": "wrong-command", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    exit_codes = {"containerName": "lmjax", "operator": "In", "values": [2]}
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"] == {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]}
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")


def pod_of(cloud, *options):
    code, _, calls = cloud("gke.sh", [*GKE, *options, "--", "lmjax"])
    assert code == 0
    return yaml.safe_load(calls[0][1])["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_pods_go_on_spot_nodes_or_on_reserved_ones_where_that_is_asked_for(cloud):
    taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert pod_of(cloud, "--spot")["tolerations"] == [taint]
    plain, reserved = pod_of(cloud), pod_of(cloud, "--reservation", "r-1")
    assert "tolerations" not in plain and "tolerations" not in reserved
    added = reserved["nodeSelector"].items() - plain["nodeSelector"].items()
    assert dict(added) == {
        "cloud.google.com/reservation-name": "r-1",
        "cloud.google.com/reservation-affinity": "specific",
    }


def accepted(cloud, type_, topologies):
    """Those of the topologies for which a manifest is made."""
    each = f"for t in {' '.join(topologies)}; do "
    each += f'bash "$0" {" ".join(GKE)} --type {type_} --topology $t --dry-run -- lmjax >/dev/null 2>&1 '
    each += "&& echo $t; done; true"
    code, output, _ = cloud(None, ["-c", each, str(SCRIPTS / "gke.sh")])
    assert code == 0
    return output.split()


@pytest.mark.parametrize("generation", SHAPES)
def test_the_topologies_that_can_be_planned_are_accepted_and_impossible_ones_are_not(cloud, generation):
    real = ["x".join(map(str, shape)) for shape in SHAPES[generation]]
    assert accepted(cloud, generation, real) == real
    if len(SHAPES[generation][0]) == 2:
        pairs = [f"{a}x{b}" for a, b in itertools.product((1, 2, 3, 4, 8, 16, 32), repeat=2)]
        wrong = [pair for pair in pairs if pair not in real]
    else:
        wrong = ["1x1x1", "4x4x2", "8x4x4", "2x2x8", "4x4x6", "2x4x8", "4x4x28", "4x4x0", "3x3x3"]
    assert accepted(cloud, generation, wrong) == []


def strict(schema):
    """The schema, refusing fields that it does not name and taking whole numbers or strings where it says so."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: strict(value) for name, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    return out


@pytest.mark.data
@pytest.mark.parametrize(
    "options", [[], ["--spot", "--slices", "2"], ["--reservation", "r"], ["--type", "v5p", "--topology", "4x4x8"]]
)
def test_every_manifest_is_one_that_a_cluster_takes(cloud, shared_data, options):
    schema = strict(json.loads((shared_data("kubernetes_crds") / "jobset_v1alpha2.json").read_text()))
    _, _, calls = cloud("gke.sh", [*GKE, *options, "--", "lmjax", "run", "a b"])
    check = jsonschema.Draft7Validator(schema)
    manifest = yaml.safe_load(calls[0][1])
    assert list(check.iter_errors(manifest)) == []
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    assert [error.validator for error in check.iter_errors(manifest)] == ["additionalProperties"]


def test_the_words_of_a_sweep_are_what_a_shell_would_make_of_them(cloud, tmp_path):
    (tmp_path / "sweep").write_bytes(
        b"lmjax run --name ''\r\n\t # a comment, isn't it\r\n   \r\n  lmjax 'a \"b\"' \"it's\" c\\ d $HOME `id` '' *"
    )
    code, _, calls = cloud("gke.sh", [*GKE, "--sweep", str(tmp_path / "sweep")])
    assert code == 0
    assert commands(calls) == [
        ["lmjax", "run", "--name", ""],
        ["lmjax", 'a "b"', "it's", "c d", "$HOME", "`id`", "", "*"],
    ]


def test_a_sweep_with_a_bad_line_submits_nothing(cloud, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.write_text("lmjax run gpt2\n\nlmjax run 'gpt2\n")
    code, output, calls = cloud("gke.sh", [*GKE, "--sweep", str(sweep)])
    assert code == 2 and calls == []
    assert f"--sweep {sweep}, line 3: cannot be split into words" in output and output.endswith("lmjax run 'gpt2\n")


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_a_sweep_without_a_command_is_refused(cloud, tmp_path, text):
    (tmp_path / "sweep").write_text(text)
    code, output, calls = cloud("gke.sh", [*GKE, "--sweep", str(tmp_path / "sweep")])
    assert code == 2 and "holds no command" in output and calls == []


def test_a_dry_run_pasted_into_a_shell_does_what_the_real_run_does(cloud, tmp_path):
    words = ["lmjax", "run", "`touch pwned`", "$HOME", "$(id)", "a 'b'", '"c"', "d\\e", "", "f\ng", "EOF"]
    _, _, real = cloud("gke.sh", [*GKE, "--spot", "--", *words])
    code, printed, calls = cloud("gke.sh", [*GKE, "--spot", "--dry-run", "--", *words])
    assert code == 0 and calls == []
    code, output, pasted = cloud(None, ["-c", printed])
    assert (code, output) == (0, "")
    assert pasted == real and commands(pasted) == [words]


def test_job_sets_are_deleted_by_name(cloud, tmp_path):
    def deleted(calls):
        assert all(
            words[:3] == ["kubectl", "delete", "jobset"] and words[4:] == ["--ignore-not-found"] for words, _ in calls
        )
        return [words[3] for words, _ in calls]

    code, _, calls = cloud("gke.sh", ["--name", "gpt2", "--delete"])
    assert code == 0 and deleted(calls) == ["gpt2"]
    (tmp_path / "sweep").write_text("lmjax run a\n# no\nlmjax run b\n")
    arguments = ["--name", "gpt2", "--sweep", str(tmp_path / "sweep"), "--delete"]
    code, _, calls = cloud("gke.sh", arguments)
    assert code == 0 and deleted(calls) == ["gpt2-0", "gpt2-1"]
    code, output, calls = cloud("gke.sh", [*arguments, "--dry-run"])
    assert code == 0 and calls == []
    assert [line.split() for line in output.splitlines()] == [
        ["kubectl", "delete", "jobset", name, "--ignore-not-found"] for name in ("gpt2-0", "gpt2-1")
    ]


@pytest.mark.parametrize(
    ("verb", "arguments"), [("apply", [*GKE, "--", "lmjax"]), ("delete", ["--name", "gpt2", "--delete"])]
)
def test_kubectl_is_tried_again_and_its_failure_is_named(cloud, verb, arguments):
    refused = ([verb], 1, "the server is busy")
    code, _, calls = cloud("gke.sh", arguments, [refused])
    assert code == 0 and [words[1] for words, _ in calls] == [verb, verb] and calls[0] == calls[1]
    code, output, calls = cloud("gke.sh", ["--attempts", "2", *arguments], [refused] * 3)
    assert code == 1 and len(calls) == 2
    assert f"gke.sh: failed 2 times: kubectl {verb}" in output and "gpt2" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--topology", "4x4x4"], "two axes"),
        (["--type", "v5p"], "three axes"),
        (["--type", "v5p", "--topology", "1x1x6"], "no such v5p slice"),
        (["--topology", "8x4"], "no such v5e slice; expected one of 1x1 2x2 2x4 4x4"),
        (["--topology", "04x4"], "expected AxB"),
        (["--reservation", "a b"], "not the name of a reservation"),
        (["--reservation", "r", "--spot"], "spot nodes are not reserved"),
        (["--topology", "big"], "expected AxB"),
        (["--type", "v9"], "expected v4"),
        (["--image", "a b"], "expected an image"),
        (["--sweep", "/nowhere"], "no such file"),
        (["--sweep", "/"], "--sweep /: a folder"),
        (["--restarts", "-1"], "expected a whole number"),
    ],
)
def test_a_job_set_that_cannot_be_is_refused_before_anything_is_called(cloud, changes, message):
    code, output, calls = cloud("gke.sh", [*GKE, *changes, *([] if "--sweep" in changes else ["--", "lmjax"])])
    assert code == 2 and message in output and calls == []
