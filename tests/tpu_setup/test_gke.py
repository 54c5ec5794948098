"""gke.sh: the JobSets of a command or of a sweep, as kubectl is sent them."""

import pytest

GKE = ["--name", "gpt2", "--type", "v5e", "--topology", "4x4", "--image", "host/p/lmjax:1", "--bucket", "my-bucket"]


def test_a_job_set_has_one_pod_per_host_and_the_command_word_for_word(cloud):
    yaml = pytest.importorskip("yaml")
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
    yaml = pytest.importorskip("yaml")
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
    yaml = pytest.importorskip("yaml")
    jobs = [yaml.safe_load(stdin)["spec"]["replicatedJobs"][0] for _, stdin in calls]
    return [job["template"]["spec"]["template"]["spec"]["containers"][0]["command"] for job in jobs]


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
        (["--type", "v5p", "--topology", "1x1x6"], "not whole hosts"),
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
