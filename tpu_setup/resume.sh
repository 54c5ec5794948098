#!/usr/bin/env bash
# Keeps a job running until it ends well: starts it again after a crash, makes the slices anew after a preemption. Whatever
# fails on the way, it looks at the slices again and goes on from what it finds.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: resume.sh --name NAME --project PROJECT --zone ZONE --type TYPE [options] -- lmjax run RECIPE [overrides]
The same command of lmjax resumes from its newest checkpoint, so keep the workdir in a bucket (--bucket).
  --max-restarts N     give up after so many restarts, failed attempts at one among them (default 100)
example: resume.sh --name gpt2 --project my-project --zone us-west4-a --type v5e-16 --provision queued-spot \\
           --bucket my-bucket -- lmjax run gpt2 --workdir '~/bucket/gpt2'"

here=$(dirname "${BASH_SOURCE[0]}")
parse "$@"
[ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, as in: -- lmjax run gpt2"

accelerator >/dev/null # a mistake in the type shows now, not at the first preemption
runtime >/dev/null

status() { # of the job: 0 to 255 its exit code, "running", "none", "bare" where lmjax is not installed; or the node's state
  local node now out
  for node in $(nodes); do
    now=$(state tpu-vm "$node") || exit
    if [ "$now" != READY ]; then
      without_node "$node" "$now"
      return
    fi
  done
  node=$(nodes | head -n 1)
  if out=$(tpu ssh "$node" --worker=0 --command="if [ -f ~/job.exit ]; then cat ~/job.exit
elif $JOB_RUNS; then echo running; elif [ -f ~/lmjax/.installed ]; then echo none; else echo bare; fi"); then
    printf '%s' "${out##*$'\n'}"
  else
    printf 'UNREACHABLE'
  fi
}

without_node() { # NODE STATE: the state of a node that is not ready, or "waiting" while its request waits in the queue
  local now=$2 queue
  case "$now" in
    PREEMPTED | TERMINATED | STOPPED | DELETING | ABSENT)
      queue=$(state queued-resources "$NAME") || exit
      case "$queue" in
        ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | CREATING) now=waiting ;;
        ACTIVE) now=$(state tpu-vm "$1") || exit ;; # it may have come between the two looks
      esac ;;
  esac
  printf '%s' "$now"
}

carry_out() { # STEP ARGUMENTS: a script, or "stop"; false if it failed, but a mistake in the arguments ends this one too
  local code=0
  case "$1" in
    stop) (for node in $(nodes); do stop_job "$node"; done) || code=$? ;;
    *) "$here/$1.sh" "${@:2}" || code=$? ;;
  esac
  [ "$code" != 2 ] || exit 2
  return "$code"
}

if $DRY_RUN; then
  for script in create bootstrap launch; do "$here/$script.sh" "$@"; done
  exit 0
fi
seen=false       # whether a state could be read at all
incomplete=false # whether the last launch failed, on some hosts or on all
before=""        # what it was seen waiting for
for ((restart = 0; restart <= MAX_RESTARTS; )); do
  if now=$(status); then seen=true; elif $seen; then now=UNREACHABLE; else exit 1; fi
  if $incomplete && [ "$now" = running ]; then now=incomplete; fi
  [ "$now" != waiting ] || [ "$before" = waiting ] || printf '%s: its request waits in the queue, and is left there\n' "$NAME"
  before=$now
  case "$now" in
    0)
      printf '%s: the job is done\n' "$NAME"
      exit 0 ;;
    waiting | running | READY | CREATING | STARTING | REPAIRING | RESTARTING | REIMAGING | STOPPING)
      sleep "$POLL_SECONDS"
      continue ;;
    2) fail "the job says that its command is wrong (exit code 2); look at it with watch.sh" ;;
    PREEMPTED | TERMINATED | STOPPED | DELETING | ABSENT)
      printf '%s: %s; making it anew\n' "$NAME" "$now"
      steps=(delete create bootstrap launch) ;;
    bare)
      printf '%s: without lmjax; installing it and starting the job\n' "$NAME"
      steps=(bootstrap launch) ;;
    UNREACHABLE) steps=() ;; # perhaps taken away since its state was read
    none | incomplete | [0-9]*)
      # What one host lost, the others wait for: all start together.
      printf '%s: %s; starting the job\n' "$NAME" "$now"
      if $incomplete; then steps=(stop bootstrap launch); else steps=(stop launch); fi ;;
    *) fail "$NAME is $now, which this script does not know" ;;
  esac
  for step in "${steps[@]}"; do
    if carry_out "$step" "$@"; then
      [ "$step" != launch ] || incomplete=false
    else
      printf '%s: %s failed; looking at its state again\n' "$NAME" "$step" >&2
      [ "$step" != launch ] || incomplete=true
      break
    fi
  done
  restart=$((restart + 1))
  sleep "$POLL_SECONDS"
done
fail "gave up after $MAX_RESTARTS restarts; look at the job with watch.sh"
