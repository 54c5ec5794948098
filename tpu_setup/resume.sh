#!/usr/bin/env bash
# Keeps a job running until it ends well: starts it again after a crash, makes the slices anew after a preemption.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: resume.sh --name NAME --project PROJECT --zone ZONE --type TYPE [options] -- lmjax run RECIPE [overrides]
The same command of lmjax resumes from its newest checkpoint, so keep the workdir in a bucket (--bucket).
  --max-restarts N     give up after so many (default 100)
example: resume.sh --name gpt2 --project my-project --zone us-west4-a --type v5e-16 --provision queued-spot \\
           --bucket my-bucket -- lmjax run gpt2 --workdir '~/bucket/gpt2'"

here=$(dirname "${BASH_SOURCE[0]}")
parse "$@"
[ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, as in: -- lmjax run gpt2"

status() { # of the job: 0 to 255 its exit code, "running", "none"; or the node's state where it cannot be asked
  local node now out
  for node in $(nodes); do
    now=$(state tpu-vm "$node") || exit
    if [ "$now" != READY ]; then
      printf '%s' "$now"
      return
    fi
  done
  node=$(nodes | head -n 1)
  # shellcheck disable=SC2016
  out=$(tpu ssh "$node" --worker=0 --command='if [ -f ~/job.exit ]; then cat ~/job.exit
elif [ -f ~/job.pid ] && kill -0 "$(cat ~/job.pid)" 2>/dev/null; then echo running; else echo none; fi') || exit
  printf '%s' "${out##*$'\n'}"
}

if $DRY_RUN; then
  for script in create bootstrap launch; do "$here/$script.sh" "$@"; done
  exit 0
fi
for ((restart = 0; restart <= MAX_RESTARTS; )); do
  now=$(status) || exit
  case "$now" in
    0)
      printf '%s: the job is done\n' "$NAME"
      exit 0 ;;
    running | CREATING | STARTING | REPAIRING | RESTARTING)
      sleep "$POLL_SECONDS"
      continue ;;
    2) fail "the job says that its command is wrong (exit code 2); look at it with watch.sh" ;;
    PREEMPTED | TERMINATED | STOPPED | DELETING | ABSENT)
      printf '%s: %s; making it anew\n' "$NAME" "$now"
      "$here/delete.sh" "$@"
      "$here/create.sh" "$@"
      "$here/bootstrap.sh" "$@" ;;
    none | [0-9]*)
      # What one host lost, the others wait for: all start together.
      printf '%s: %s; starting the job\n' "$NAME" "$now"
      for node in $(nodes); do stop_job "$node"; done ;;
    *) fail "$NAME is $now, which this script does not know" ;;
  esac
  "$here/launch.sh" "$@"
  restart=$((restart + 1))
  sleep "$POLL_SECONDS"
done
fail "the job was started $MAX_RESTARTS times and did not end well; look at it with watch.sh"
