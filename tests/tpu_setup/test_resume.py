"""resume.sh: slices that are taken away, jobs that crash, and a cloud that does not answer."""

import pytest

from .conftest import ABSENT, NODE, NOTHING, PLACE, QUEUE, deeds

JOB, ALL = ["--worker=0"], ["ssh", "--worker=all"]
GONE = [(NODE, 0, "PREEMPTED"), (QUEUE, 0, "SUSPENDED")]  # a slice that was taken away, and its request is over
READY, DONE = (NODE, 0, "READY"), [(NODE, 0, "READY"), (["--worker=0"], 0, "0")]
REMADE = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]  # created, bootstrapped, launched
START = ["tpu-vm ssh", "tpu-vm ssh"]  # stopped, launched


def test_resume_makes_preempted_slices_anew_and_starts_the_job_again_until_it_ends_well(cloud):
    answers = [
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "139"),  # it crashed
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "running"),
        *GONE,
        *((QUEUE, 0, "SUSPENDED"), (NODE, *ABSENT)),  # seen by delete.sh
        *NOTHING,  # by create.sh
        (QUEUE, 0, "ACTIVE"),
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "0"),
    ]
    options = ["--type", "v5e-16", "--provision", "queued-spot"]
    code, output, calls = cloud("resume.sh", [*PLACE, *options, "--", "lmjax", "run", "gpt2"], answers)
    assert code == 0 and "the job is done" in output
    done = [(words[3], words[4]) for words, _ in calls if words[4] != "describe" and "--worker=0" not in words]
    stop, start = ("tpu-vm", "ssh"), ("tpu-vm", "ssh")
    remade = [
        *(("queued-resources", "delete"), ("queued-resources", "create")),
        *(("tpu-vm", "scp"), ("tpu-vm", "ssh"), start),
    ]
    assert done == [stop, start, *remade]


@pytest.fixture
def resume(cloud):
    """A function (answers, *options) -> (exit code, output, what was done besides looking)."""

    def call(answers, *options):
        arguments = [*PLACE, "--type", "v5e-16", "--attempts", "2", *options, "--", "lmjax", "run", "gpt2"]
        code, output, calls = cloud("resume.sh", arguments, answers)
        return code, output, deeds([call for call in calls if "--worker=0" not in call[0]])

    return call


def test_resume_looks_again_when_a_slice_is_taken_away_before_the_job_is_asked_for(resume):
    answers = [READY, *[(JOB, 255, "timed out")] * 2, *GONE, *NOTHING, *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*answers, *DONE])
    assert code == 0 and "the job is done" in output and done == REMADE


@pytest.mark.parametrize("succeeded", [0, 1])
def test_resume_looks_again_when_a_slice_is_taken_away_before_the_job_is_stopped_or_launched(resume, succeeded):
    answers = [READY, (JOB, 0, "139"), *[(ALL, 0, "")] * succeeded, *[(ALL, 255, "timed out")] * 2]
    remade = [*GONE, *NOTHING, *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*answers, *remade, *DONE])
    assert code == 0 and "the job is done" in output
    assert f"gpt2: {['stop', 'launch'][succeeded]} failed; looking at its state again" in output
    assert done == [*["tpu-vm ssh"] * (succeeded + 2), *REMADE]


def test_resume_installs_again_and_starts_all_hosts_when_a_launch_failed_on_some(resume):
    answers = [
        READY,
        (JOB, 0, "none"),
        (ALL, 0, ""),
        *[(ALL, 1, "lmjax is not installed")] * 2,
        READY,
        (JOB, 0, "running"),
    ]
    code, _, done = resume([*answers, *DONE])
    bootstrap = ["tpu-vm scp", "tpu-vm ssh"]
    assert code == 0 and done == [*START, "tpu-vm ssh", "tpu-vm ssh", *bootstrap, "tpu-vm ssh"]


def test_resume_bootstraps_a_slice_that_never_was(resume):
    code, output, done = resume([READY, (JOB, 0, "bare"), *DONE])
    assert code == 0 and "without lmjax" in output and done == ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_resume_asks_once_more_for_slices_that_could_not_be_had(resume, state):
    preempted = [*GONE, *NOTHING, *NOTHING, (QUEUE, 0, state)]
    again = [(NODE, *ABSENT), (QUEUE, 0, state), (QUEUE, 0, state), (NODE, *ABSENT), *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*preempted, *again, *DONE])
    assert code == 0 and f"gpt2 is {state}" in output and "gpt2: create failed" in output
    assert done == ["queued-resources create", "queued-resources delete", *REMADE]


def test_resume_gives_up_after_as_many_restarts_as_it_may(resume):
    answers = [READY, (JOB, 0, "1")] * 9
    code, output, done = resume(answers, "--max-restarts", "2")
    assert code == 1 and "gave up after 2 restarts" in output and done == START * 3
    code, output, done = resume([READY, *[(JOB, 255, "timed out")] * 2] * 9, "--max-restarts", "2")
    assert code == 1 and "gave up after 2 restarts" in output and done == []


def test_resume_bears_with_a_cloud_that_does_not_answer_unless_it_never_did(resume):
    denied = (NODE, 1, "ERROR: PERMISSION_DENIED")
    code, output, done = resume([denied] * 3)
    assert code == 1 and output.count("PERMISSION_DENIED") == 1 and done == []
    code, output, done = resume([READY, (JOB, 0, "running"), denied, *DONE])
    assert code == 0 and "PERMISSION_DENIED" in output and "the job is done" in output and done == []


def test_resume_names_a_mistake_before_it_looks(cloud):
    for arguments, message in ((PLACE, "--type is missing"), ([*PLACE, "--type", "v9-8"], "expected v4-N")):
        code, output, calls = cloud("resume.sh", [*arguments, "--", "lmjax"])
        assert code == 2 and message in output and calls == []


def test_resume_gives_up_on_a_command_that_is_wrong(cloud):
    answers = [(["describe"], 0, "READY"), (["--worker=0"], 0, "2")]
    code, output, _ = cloud("resume.sh", [*PLACE, "--type", "v4-8", "--", "lmjax", "run", "gpt9"], answers)
    assert code == 1 and "exit code 2" in output


UNAVAILABLE = "ERROR: 503 Service Unavailable"
QUEUED = "queued-resources create"


@pytest.mark.parametrize("state", ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING"])
def test_a_request_that_waits_in_the_queue_keeps_its_place_when_resume_is_started_again(resume, state):
    waiting = [(NODE, *ABSENT), (QUEUE, 0, state)]
    code, output, done = resume([*waiting * 3, READY, (JOB, 0, "bare"), *DONE], "--max-restarts", "2")
    assert code == 0 and done == ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert output.count("its request waits in the queue, and is left there") == 1


def test_a_look_that_fails_does_not_cost_the_place_in_the_queue(resume):
    made = [(NODE, *ABSENT), (QUEUE, *ABSENT), *NOTHING, *NOTHING]
    waits = [(QUEUE, 0, "WAITING_FOR_RESOURCES"), (QUEUE, 1, UNAVAILABLE), (QUEUE, 0, "ACTIVE")]
    code, _, done = resume([*made, *waits, *DONE])
    assert code == 0 and done == REMADE
    gone = [
        (QUEUE, 0, "WAITING_FOR_RESOURCES"),
        *[(QUEUE, 1, UNAVAILABLE)] * 2,
    ]  # create.sh gives up, resume.sh does not
    waiting = [(NODE, *ABSENT), (QUEUE, 0, "WAITING_FOR_RESOURCES"), (NODE, *ABSENT), (QUEUE, 1, UNAVAILABLE)]
    code, _, done = resume([*made, *gone, *waiting, READY, (JOB, 0, "bare"), *DONE])
    assert code == 0 and done == [QUEUED, "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


def test_a_request_whose_answer_was_lost_is_not_made_twice(resume):
    made = [(NODE, *ABSENT), (QUEUE, *ABSENT), *NOTHING, *NOTHING]
    lost = [(["create"], 1, "ERROR: deadline exceeded"), (QUEUE, 0, "ACCEPTED"), (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*made, *lost, *DONE])
    assert code == 0 and done == REMADE and "although the answer was lost" in output


def test_a_slice_that_came_between_two_looks_is_not_deleted(resume):
    code, _, done = resume([(NODE, *ABSENT), (QUEUE, 0, "ACTIVE"), READY, READY, (JOB, 0, "bare"), *DONE])
    assert code == 0 and done == ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
