#!/usr/bin/env bash
# Launches the shares of a sweep, or of a corpus, as managed jobs of SkyPilot, which recover from preemptions.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: skypilot.sh --name NAME --shares N --accelerators WHAT --bucket BUCKET [options] -- \\
         lmjax sweep RECIPE --workdir '/bucket/NAME-{share}'
The managed job NAME-I runs COMMAND --shard I+1/N in this checkout on a machine of its own; each {share} in its words
becomes I+1. A job whose machine is taken away runs the same command on another one, and resumes. The exit codes 1 (a
run of the sweep failed: its row says so) and 2 end a job.

options:
  --name NAME          of the jobs: NAME-0, NAME-1, ...
  --shares N           jobs
  --accelerators WHAT  of each, on one host, as SkyPilot calls them: tpu-v5litepod-8, tpu-v6e-4, H100:1
  --bucket BUCKET      Cloud Storage bucket, mounted at /bucket: workdirs belong there
  --spot               on spot machines
  --poll-seconds N     between two attempts (default 30)
  --attempts N         times a job is launched that is refused (default 3)
  --dry-run            print the task and the commands, touch nothing
example: skypilot.sh --name isoflop --shares 8 --accelerators tpu-v5litepod-8 --spot --bucket my-bucket -- \\
           lmjax sweep isoflop.py --workdir '/bucket/isoflop-{share}'"

declare -A FIELD=([ACCELERATORS]="" [SPOT]=false [BUCKET]="" [EXTRA]=cuda)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

while [ "$#" -gt 0 ]; do
  case "$1" in
    --name) NAME=$(value_of "$1" "$@") ;;
    --shares) SHARES=$(number_of "$1" "$@") ;;
    --accelerators) FIELD[ACCELERATORS]=$(value_of "$1" "$@") ;;
    --bucket) FIELD[BUCKET]=$(value_of "$1" "$@") ;;
    --poll-seconds) POLL_SECONDS=$(number_of "$1" "$@") ;;
    --attempts) ATTEMPTS=$(number_of "$1" "$@") ;;
    --spot) FIELD[SPOT]=true; shift; continue ;;
    --dry-run) DRY_RUN=true; shift; continue ;;
    --help | -h) printf '%s\n' "$USAGE"; exit 0 ;;
    --) shift; COMMAND=("$@"); break ;;
    *) die "$1: unknown option; see --help" ;;
  esac
  shift 2
done
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || die "--name '$NAME': expected lower-case letters, digits and '-'"
[[ ${FIELD[BUCKET]} =~ $BUCKET_NAME ]] || die "--bucket '${FIELD[BUCKET]}': not the name of a bucket"
[[ ${FIELD[ACCELERATORS]} =~ ^[a-zA-Z0-9][-a-zA-Z0-9]*(:[1-9][0-9]?)?$ ]] ||
  die "--accelerators '${FIELD[ACCELERATORS]}': expected a name such as tpu-v5litepod-8 or H100:1"
if [[ ${FIELD[ACCELERATORS]} == tpu-* ]]; then
  FIELD[EXTRA]=tpu
  [[ ${FIELD[ACCELERATORS]} =~ ^tpu-(v5litepod-(1|4|8)|v6e-(1|4|8)|v[45]p?-8)(:1)?$ ]] ||
    die "--accelerators ${FIELD[ACCELERATORS]}: every share runs on one host; expected tpu-v5litepod-8, tpu-v6e-8 or less, \
tpu-v4-8 or tpu-v5p-8"
fi
check_shares
check_own_workdirs

FIELD[SHARES]=$SHARES FIELD[CHECKOUT]=${here%/*}
[[ ${FIELD[CHECKOUT]} =~ ^[-a-zA-Z0-9_./]+$ ]] || die "${FIELD[CHECKOUT]}: SkyPilot cannot be told of this folder; move the checkout"
text=$(rendered "$here/skypilot.yaml" "$(in_ascii "${COMMAND[@]}")")

launch() { # FILE: all shares
  local index
  for ((index = 0; index < SHARES; index++)); do
    run sky jobs launch --yes --detach-run --name "$NAME-$index" --env "SHARE_INDEX=$index" "$1"
  done
}

if $DRY_RUN; then
  printf "cat >%s.yaml <<'END_OF_TASK'\n%s\nEND_OF_TASK\n" "$NAME" "$text"
  launch "$NAME.yaml"
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  printf '%s\n' "$text" >"$scratch/$NAME.yaml"
  launch "$scratch/$NAME.yaml"
fi
