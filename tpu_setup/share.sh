#!/usr/bin/env bash
# Becomes one share of a sweep or of a corpus, on a machine of an array, of an indexed job or of a SkyPilot job.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: share.sh --shares N --index-from VARIABLE -- COMMAND
Runs COMMAND --shard I/N, where I is the index in that environment variable, which counts from 0, plus 1; each {share}
in its words becomes I. It replaces itself by the command: signals reach that, and its exit code is the share's.
example: share.sh --shares 4 --index-from SLURM_ARRAY_TASK_ID -- lmjax sweep isoflop.py --workdir 'runs/isoflop-{share}'"

VARIABLE=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --shares) SHARES=$(number_of "$1" "$@") ;;
    --index-from) VARIABLE=$(value_of "$1" "$@") ;;
    --help | -h) printf '%s\n' "$USAGE"; exit 0 ;;
    --) shift; COMMAND=("$@"); break ;;
    *) die "$1: unknown option; see --help" ;;
  esac
  shift 2
done
check_shares
[[ $VARIABLE =~ ^[A-Z_]+$ ]] || die "--index-from '$VARIABLE': expected the name of an environment variable"
index=${!VARIABLE:-}
[[ $index =~ ^(0|[1-9][0-9]{0,5})$ ]] || die "$VARIABLE = '$index': expected the index of this share, from 0"
[ "$index" -lt "$SHARES" ] || die "$VARIABLE = $index: expected less than --shares $SHARES; they count from 0"

share=$((index + 1))
# A share is alone, also where GKE names the hosts of all pods of a job.
[ -z "${TPU_WORKER_HOSTNAMES:-}" ] || export TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost
exec "${COMMAND[@]//'{share}'/$share}" --shard "$share/$SHARES"
