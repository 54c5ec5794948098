#!/usr/bin/env bash
# Starts one command on every host of every slice, detached: it goes on when this terminal closes.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: launch.sh --name NAME --project PROJECT --zone ZONE [options] -- lmjax run RECIPE [overrides]
Its output goes to ~/job.log on each host, its exit code to ~/job.exit. A job that is running is left alone.
A --bucket is mounted where it is not.
example: launch.sh --name gpt2 --project my-project --zone us-west4-a -- lmjax run gpt2 --workdir '~/bucket/gpt2'"

parse "$@"
[ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, as in: -- lmjax run gpt2"

words=""
for word in "${COMMAND[@]}"; do
  # A leading ~/ means the host's home folder, not this machine's; everything else is taken literally.
  # shellcheck disable=SC2088
  if [[ $word == '~/'* ]]; then words+="~/$(printf '%q' "${word:2}") "; else words+="$(printf '%q' "$word") "; fi
done
job="cd ~/lmjax && PATH=\$HOME/lmjax/.venv/bin:\$PATH $words; echo \$? > ~/job.exit"
start="set -eo pipefail
if $JOB_RUNS; then echo already running; exit; fi
[ -f ~/lmjax/.installed ] || { echo \"\$(hostname): lmjax is not installed; run bootstrap.sh\" >&2; exit 1; }
$(mount_bucket)
rm -f ~/job.exit
nohup setsid bash -c $(printf '%q' "$job") lmjax-job > ~/job.log 2>&1 < /dev/null &
echo \$! > ~/job.pid"
for node in $(nodes); do
  on_every_host "$node" "$start"
done
