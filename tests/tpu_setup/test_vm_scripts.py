"""The options of the cloud scripts, and how TPU VMs are made, watched and deleted: exact commands, retries."""

import shutil
import subprocess

import pytest

from lmjax.plan.slices import names

from .conftest import ABSENT, NODE, NOTHING, PLACE, QUEUE, SCRIPTS, deeds, verbs


def test_the_scripts_are_shellcheck_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs Debian's shellcheck")
    scripts = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=SCRIPTS, check=False)
    assert len(scripts) == 11
    assert (done.returncode, done.stdout) == (0, "")


def test_create_on_demand_waits_until_the_machine_is_ready(cloud):
    answers = [*NOTHING, (NODE, 0, "CREATING"), (NODE, 0, "READY")]
    code, _, calls = cloud("create.sh", [*PLACE, "--type", "v5e-16", "--provision", "on-demand"], answers)
    assert code == 0
    assert verbs(calls) == ["describe", "describe", "create", "describe", "describe"]
    assert calls[2][0] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "gpt2", "--project=my-project", "--zone=us-west4-a"),
        *("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"),
    ]


@pytest.mark.parametrize("provision", ["spot", "queued"])
def test_create_again_makes_nothing_new_whatever_the_kind_of_what_exists(cloud, provision):
    options = [*PLACE, "--type", "v4-8", "--provision", provision]
    code, output, calls = cloud("create.sh", options, [(QUEUE, *ABSENT), (NODE, 0, "CREATING"), (NODE, 0, "READY")])
    assert code == 0 and "gpt2 exists already, as a TPU VM" in output and "gpt2: READY" in output
    assert deeds(calls) == []
    code, output, calls = cloud("create.sh", options, [(QUEUE, 0, "ACCEPTED"), (QUEUE, 0, "ACTIVE")])
    assert code == 0 and "gpt2 exists already, as a queued resource" in output and "gpt2: ACTIVE" in output
    assert deeds(calls) == []


def test_several_slices_are_not_taken_for_a_single_machine_of_that_name(cloud):
    code, output, calls = cloud(
        "create.sh", [*PLACE, "--type", "v4-8", "--slices", "2"], [(QUEUE, *ABSENT), (NODE, 0, "READY")]
    )
    assert code == 2 and "gpt2 is a single TPU VM" in output and deeds(calls) == []


def test_create_of_several_slices_asks_for_a_queued_resource(cloud):
    arguments = [*PLACE, "--type", "v5p-128", "--provision", "queued-spot", "--slices", "2"]
    code, _, calls = cloud("create.sh", arguments, [*NOTHING, (QUEUE, 0, "ACTIVE")])
    assert code == 0
    assert calls[2][0] == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "gpt2"),
        *("--project=my-project", "--zone=us-west4-a", "--node-count=2", "--node-prefix=gpt2"),
        *("--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"),
    ]


def test_a_queued_resource_that_fails_is_an_error_that_says_what_to_do(cloud):
    answers = [*NOTHING, (QUEUE, 0, "FAILED")]
    code, output, _ = cloud("create.sh", [*PLACE, "--type", "v6e-8"], answers)
    assert code == 1 and "gpt2 is FAILED" in output and "delete.sh" in output


def test_a_command_that_fails_is_tried_again_and_then_given_up(cloud):
    refused = (["create"], 1, "ERROR: quota")
    options = [*PLACE, "--type", "v4-8", "--provision", "spot", "--attempts", "2"]
    create = "tpu-vm create"
    code, _, calls = cloud("create.sh", options, [*NOTHING, refused, *NOTHING, (NODE, 0, "READY")])
    assert code == 0 and deeds(calls) == [create, create]
    code, output, calls = cloud("create.sh", options, [*NOTHING, refused, *NOTHING, refused, *NOTHING])
    assert code == 1 and "failed 2 times" in output and deeds(calls) == [create, create]


def test_an_answer_that_is_not_about_absence_is_not_taken_for_absence(cloud):
    answers = [(["describe"], 1, "ERROR: PERMISSION_DENIED")]
    code, output, calls = cloud("create.sh", [*PLACE, "--type", "v4-8", "--provision", "spot"], answers)
    assert code == 1 and "PERMISSION_DENIED" in output and verbs(calls) == ["describe"]


def test_slices_come_from_a_reservation_and_stand_in_the_network_that_is_named(cloud):
    where = ["--network", "net", "--subnetwork", "sub-1"]
    arguments = [*PLACE, "--type", "v5p-128", *where, "--reservation", "projects/p/reservations/r-1"]
    code, _, calls = cloud("create.sh", arguments, [*NOTHING, (QUEUE, 0, "ACTIVE")])
    assert code == 0
    assert calls[2][0][:6] == ["gcloud", "alpha", "compute", "tpus", "queued-resources", "create"]
    more = ["--network=net", "--subnetwork=sub-1", "--reservation=projects/p/reservations/r-1"]
    assert calls[2][0][-3:] == more
    arguments = [*PLACE, "--type", "v5p-128", *where, "--provision", "spot"]
    code, _, calls = cloud("create.sh", arguments, [*NOTHING, (NODE, 0, "READY")])
    assert code == 0 and calls[2][0][-3:] == ["--spot", *more[:2]]


def test_a_warning_of_gcloud_is_no_part_of_a_state(cloud):
    answers = [*NOTHING, (NODE, 0, "WARNING: a component is old\n\nREADY")]
    code, output, _ = cloud("create.sh", [*PLACE, "--type", "v4-8", "--provision", "spot"], answers)
    assert code == 0 and output.endswith("gpt2: READY\n")


def test_bootstrap_says_which_files_stay_behind(cloud, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(SCRIPTS, checkout / "tpu_setup")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    script = [str(checkout / "tpu_setup" / "bootstrap.sh"), *PLACE]
    code, output, _ = cloud(None, script)
    assert code == 0 and "stay behind" not in output
    (checkout / "recipe.py").write_text("")
    (checkout / "tpu_setup" / "README.md").write_text("changed")
    code, output, _ = cloud(None, script)
    assert code == 0
    expected = ["bootstrap.sh: not committed, so these stay behind (the last commit is sent):"]
    assert output.splitlines()[:3] == [*expected, " M tpu_setup/README.md", "?? recipe.py"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--project", "p", "--zone", "z"], "--name is missing"),
        ([*PLACE, "--type", "v4-8", "--reservation", "r", "--provision", "spot"], "expected --provision queued"),
        ([*PLACE, "--type", "v4-8", "--reservation", "a b"], "expected the name of a reservation"),
        ([*PLACE, "--type", "v4-8", "--network", "a/b"], "not the name of a network"),
        ([*PLACE, "--type", "v4-8", "--subnetwork", "A"], "not the name of a subnetwork"),
        ([*PLACE, "--type", "v9-8"], "expected v4-N"),
        ([*PLACE, "--type", "v5e-17"], "--type v5e-17: expected 1, 4, 8, 16, 32, 64, 128 or 256 chips"),
        ([*PLACE, "--type", "v5e-"], "--type v5e-: expected 1, 4"),
        ([*PLACE, "--type", "v6e-512"], "--type v6e-512: expected 1, 4"),
        ([*PLACE, "--type", "v5p-12"], "--type v5p-12: expected a multiple of 8 TensorCores"),
        ([*PLACE, "--type", "v4-x8"], "--type v4-x8: expected a multiple of 8 TensorCores"),
        ([*PLACE, "--type", "tpu7x-8"], "gke.sh"),
        ([*PLACE], "--type is missing"),
        ([*PLACE, "--type"], "needs a value"),
        ([*PLACE, "--type", "v4-8", "--slices", "0"], "whole number above 0"),
        ([*PLACE, "--type", "v4-8", "--slices", "2", "--provision", "spot"], "queued"),
        ([*PLACE, "--type", "v4-8", "--provision", "free"], "expected on-demand"),
        ([*PLACE, "--typo", "v4-8"], "--typo: unknown option"),
        (["--name", "a; rm -rf b", "--project", "p", "--zone", "z"], "lower-case letters"),
    ],
)
def test_mistakes_are_named_and_nothing_is_called(cloud, arguments, message):
    code, output, calls = cloud("create.sh", arguments)
    assert code == 2 and message in output and calls == []


def test_every_slice_that_can_be_planned_can_be_asked_for(cloud):
    types = [name for generation in ("v4", "v5e", "v5p", "v6e") for name in names(generation)]
    asked = f"source {SCRIPTS}/cloud.sh; for TYPE in {' '.join(types)}; do accelerator; echo; done"
    code, output, _ = cloud(None, ["-c", asked])
    assert code == 0 and len(types) > 40
    assert output.split() == [name.replace("v5e", "v5litepod") for name in types]


def test_watch_follows_the_host_and_the_slice_that_are_named(cloud):
    code, _, calls = cloud("watch.sh", [*PLACE, "--slices", "3", "--slice", "2", "--worker", "1"])
    assert code == 0 and calls[0][0][4:6] == ["ssh", "gpt2-2"] and "--worker=1" in calls[0][0]
    code, _, calls = cloud("watch.sh", PLACE)
    assert code == 0 and calls[0][0][4:6] == ["ssh", "gpt2"] and "--worker=0" in calls[0][0]
    for slice_, slices in (("1", "1"), ("3", "3"), ("x", "2"), ("08", "9")):
        code, output, calls = cloud("watch.sh", [*PLACE, "--slices", slices, "--slice", slice_])
        assert code == 2 and f"--slice {slice_}: expected a slice's number" in output and calls == []


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_a_bash_that_is_too_old_is_told_so(cloud, tmp_path, script):
    folder = tmp_path / "old"
    shutil.copytree(SCRIPTS, folder)
    library = folder / "cloud.sh"
    text = library.read_text().replace("BASH_VERSINFO", "OLD").replace("$BASH_VERSION ", "3.2.57 ")
    library.write_text(f"OLD=(3 2 57)\n{text}")
    code, output, calls = cloud(None, [str(folder / script), "--help"])
    assert (code, calls) == (2, [])
    assert output.startswith(f"{script}: bash 3.2.57 is too old: expected 4.4 or newer") and output.count("\n") == 1


@pytest.mark.parametrize("script", ["create", "bootstrap", "launch", "watch", "resume", "delete", "gke"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "--type", "v5e-16", "--", "a"], "--name needs a value, and --type follows it"),
        (["--name", "gpt2", "--slices", "--dry-run"], "--slices needs a value, and --dry-run follows it"),
        (["--name", "--", "lmjax"], "--name needs a value, and -- follows it"),
        (["--name"], "--name needs a value, and nothing follows it"),
        (["--typo"], "--typo: unknown option"),
    ],
)
def test_an_option_is_never_taken_for_a_value(cloud, script, arguments, message):
    code, output, calls = cloud(f"{script}.sh", arguments)
    assert code == 2 and message in output and calls == []
    assert output.startswith(f"{script}.sh: ") and output.count("\n") == 1


def test_a_zone_that_is_forgotten_before_dry_run_does_not_make_the_run_real(cloud):
    code, output, calls = cloud("create.sh", [*PLACE[:4], "--type", "v5e-16", "--zone", "--dry-run"])
    assert code == 2 and "--zone needs a value, and --dry-run follows it" in output and calls == []


@pytest.mark.parametrize("script", ["bootstrap", "launch", "resume"])
def test_a_name_that_no_bucket_can_have_is_refused_before_anything_is_printed(cloud, script):
    arguments = [*PLACE, "--type", "v5e-16", "--dry-run", "--bucket", "my bucket", "--", "lmjax"]
    code, output, calls = cloud(f"{script}.sh", arguments)
    assert (code, calls) == (2, [])
    assert output == f"{script}.sh: --bucket my bucket: not the name of a bucket\n"


def test_delete_of_what_is_not_there_does_nothing(cloud):
    code, output, calls = cloud("delete.sh", PLACE, NOTHING)
    assert code == 0 and "does not exist" in output and verbs(calls) == ["describe", "describe"]


@pytest.mark.parametrize("provision", [[], ["--provision", "spot"], ["--provision", "queued"]])
@pytest.mark.parametrize(
    ("answers", "deleted"),
    [
        ([(QUEUE, *ABSENT), (NODE, 0, "READY")], ["tpu-vm delete"]),
        ([(QUEUE, 0, "ACTIVE"), (NODE, *ABSENT)], ["queued-resources delete"]),
        ([(QUEUE, 0, "FAILED"), (NODE, 0, "READY")], ["queued-resources delete", "tpu-vm delete"]),
        ([(QUEUE, 0, "ACTIVE"), (NODE, 0, "DELETING")], ["queued-resources delete"]),
    ],
)
def test_delete_takes_away_whatever_bears_the_name(cloud, provision, answers, deleted):
    code, output, calls = cloud("delete.sh", [*PLACE, *provision], answers)
    assert code == 0 and deeds(calls) == deleted and "does not exist" not in output
    assert all("gpt2" in words and "--quiet" in words for words, _ in calls if words[4] == "delete")


def test_a_dry_run_of_delete_names_both_kinds(cloud):
    code, output, calls = cloud("delete.sh", [*PLACE, "--dry-run"])
    assert code == 0 and calls == []
    assert [line.split()[3:5] for line in output.splitlines()] == [["queued-resources", "delete"], ["tpu-vm", "delete"]]


@pytest.mark.parametrize("script", ["create", "bootstrap", "launch", "watch", "resume", "delete"])
def test_a_dry_run_prints_the_commands_and_calls_nothing(cloud, script):
    options = ["--type", "v5e-16", "--dry-run", "--", "lmjax", "run", "gpt2"]
    code, output, calls = cloud(f"{script}.sh", [*PLACE, *options])
    assert code == 0 and calls == []
    assert "gcloud compute tpus" in output and "--zone=us-west4-a" in output


def test_the_image_takes_nothing_that_git_does_not_keep():
    root = SCRIPTS.parent
    left_out = set((root / ".dockerignore").read_text().splitlines())
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().splitlines()]
    # Git means any folder where no / leads; Docker says so with **/.
    assert {line[1:] if line.startswith("/") else f"**/{line}" for line in ignored} <= left_out
    assert ".git" in left_out


def test_the_commands_of_the_readme_are_understood(cloud):
    """Every tpu_setup/ command, as it stands there, with --dry-run before its first option."""
    blocks = (SCRIPTS / "README.md").read_text().split("```")[1::2]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    wanted = [line for line in lines if line.startswith(("slice=", "tpu_setup/"))]
    script = "\n".join(line.replace(".sh ", ".sh --dry-run ", 1) for line in wanted)
    code, output, calls = cloud(None, ["-c", f"set -e; cd '{SCRIPTS.parent}'\n{script}"])
    assert (code, calls) == (0, []), output
    assert len(wanted) == 12 and output.count("gcloud compute tpus") >= 8
    assert [output.count(call) for call in ("kubectl apply", "sbatch <<", "sky jobs launch")] == [3, 1, 8]
