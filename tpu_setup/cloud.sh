# What every script here shares: its options, the names Google Cloud gives a slice, and running a command.
# Sourced, never executed. A script sets USAGE, calls `parse "$@"`, and then speaks to the cloud through `run`.
# shellcheck shell=bash

die() { # exit code 2: the caller's mistake
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  die "bash $BASH_VERSION is too old: expected 4.4 or newer; on macOS, \`brew install bash\` and open a new terminal"

set -euo pipefail

# shellcheck disable=SC2034  # the scripts that source this read them
NAME="" PROJECT="" ZONE="" TYPE="" PROVISION="queued" SLICES=1 RUNTIME="" BUCKET="" SLICE=0 WORKER=0
RESERVATION="" NETWORK="" SUBNETWORK=""
DRY_RUN=false ATTEMPTS=3 POLL_SECONDS=30 MAX_RESTARTS=100
COMMAND=() SHARES=""
RESOURCE_NAME='^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$'
RESERVATION_NAME='^(projects/[-a-z0-9:.]+/reservations/)?[a-z]([-a-z0-9]{0,61}[a-z0-9])?$'
BUCKET_NAME='^[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]$'

COMMON_OPTIONS="  --name NAME          of the TPU VM, or of the queued resource and its slices
  --project PROJECT    Google Cloud project
  --zone ZONE          such as us-west4-a
  --type TYPE          slice: v4-8, v5e-16, v5p-1024, v6e-256 (tpu7x is only to be had through gke.sh)
  --provision HOW      on-demand, spot, queued (default) or queued-spot
  --slices N           slices joined over the data-centre network; needs queued or queued-spot (default 1)
  --reservation NAME   take them from this reservation, or projects/PROJECT/reservations/NAME; needs queued
  --network NAME       of the slices' hosts (default: the project's default network)
  --subnetwork NAME    within that network
  --runtime VERSION    TPU software version (default: the one for TYPE)
  --bucket NAME        a Cloud Storage bucket, mounted at ~/bucket on every host
  --poll-seconds N     between two looks at a state (default 30)
  --attempts N         times a command of the cloud is tried (default 3)
  --dry-run            print the exact commands, touch nothing"

fail() { # exit code 1: the cloud's
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

usage() { printf '%s\n\noptions:\n%s\n' "$USAGE" "$COMMON_OPTIONS"; }

value_of() { # OPTION "$@": the value that follows an option
  [ "$#" -ge 3 ] || die "$1 needs a value, and nothing follows it; see --help"
  [[ $3 != --* ]] || die "$1 needs a value, and $3 follows it; see --help"
  printf '%s' "$3"
}

number_of() { # OPTION "$@": the same, a whole number above 0
  local value
  value=$(value_of "$@") || exit
  [[ $value =~ ^[1-9][0-9]*$ ]] || die "$1 $value: expected a whole number above 0"
  printf '%s' "$value"
}

# shellcheck disable=SC2034  # the scripts that source this read them
parse() {
  while [ "$#" -gt 0 ]; do
    case "$1" in
      --name) NAME=$(value_of "$1" "$@") ;;
      --project) PROJECT=$(value_of "$1" "$@") ;;
      --zone) ZONE=$(value_of "$1" "$@") ;;
      --type) TYPE=$(value_of "$1" "$@") ;;
      --provision) PROVISION=$(value_of "$1" "$@") ;;
      --slices) SLICES=$(number_of "$1" "$@") ;;
      --reservation) RESERVATION=$(value_of "$1" "$@") ;;
      --network) NETWORK=$(value_of "$1" "$@") ;;
      --subnetwork) SUBNETWORK=$(value_of "$1" "$@") ;;
      --runtime) RUNTIME=$(value_of "$1" "$@") ;;
      --bucket) BUCKET=$(value_of "$1" "$@") ;;
      --slice) SLICE=$(value_of "$1" "$@") ;;
      --worker) WORKER=$(value_of "$1" "$@") ;;
      --poll-seconds) POLL_SECONDS=$(number_of "$1" "$@") ;;
      --attempts) ATTEMPTS=$(number_of "$1" "$@") ;;
      --max-restarts) MAX_RESTARTS=$(number_of "$1" "$@") ;;
      --dry-run) DRY_RUN=true; shift; continue ;;
      --help | -h) usage; exit 0 ;;
      --) shift; COMMAND=("$@"); break ;;
      *) die "$1: unknown option; see --help" ;;
    esac
    shift 2
  done
  [ -n "$NAME" ] || die "--name is missing; see --help"
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    die "--name $NAME: expected lower-case letters, digits and '-', a letter first"
  [ -n "$PROJECT" ] || die "--project is missing; see --help"
  [ -n "$ZONE" ] || die "--zone is missing; see --help"
  case "$PROVISION" in
    on-demand | spot | queued | queued-spot) ;;
    *) die "--provision $PROVISION: expected on-demand, spot, queued or queued-spot" ;;
  esac
  [ -z "$BUCKET" ] || [[ $BUCKET =~ $BUCKET_NAME ]] || die "--bucket $BUCKET: not the name of a bucket"
  [ -z "$RESERVATION" ] || [[ $RESERVATION =~ $RESERVATION_NAME ]] ||
    die "--reservation $RESERVATION: expected the name of a reservation, or projects/PROJECT/reservations/NAME"
  [ -z "$RESERVATION" ] || [ "$PROVISION" = queued ] || die "--reservation $RESERVATION: expected --provision queued"
  [ -z "$NETWORK" ] || [[ $NETWORK =~ $RESOURCE_NAME ]] || die "--network $NETWORK: not the name of a network"
  [ -z "$SUBNETWORK" ] || [[ $SUBNETWORK =~ $RESOURCE_NAME ]] || die "--subnetwork $SUBNETWORK: not the name of a subnetwork"
  [ "$SLICES" = 1 ] || queued || die "--slices $SLICES: expected --provision queued or queued-spot"
}

# What a name may stand for, in the order to look: a TPU VM may belong to the queued resource of the same name.
# shellcheck disable=SC2034
KINDS=(queued-resources tpu-vm)

in_words() { # a kind, as messages name it
  if [ "$1" = tpu-vm ]; then printf 'TPU VM'; else printf 'queued resource'; fi
}

queued() { [[ $PROVISION == queued* ]]; }

accelerator() { # what the API calls TYPE
  local size=${TYPE#*-}
  case "$TYPE" in
    v4-* | v5p-*)
      [[ $size =~ ^[1-9][0-9]{0,5}$ && $((size % 8)) = 0 ]] ||
        die "--type $TYPE: expected a multiple of 8 TensorCores, two a chip, such as ${TYPE%%-*}-32" ;;
    v5e-* | v6e-*)
      [[ $size =~ ^(1|4|8|16|32|64|128|256)$ ]] ||
        die "--type $TYPE: expected 1, 4, 8, 16, 32, 64, 128 or 256 chips, such as ${TYPE%%-*}-16" ;;
    tpu7x-*) die "--type $TYPE: to be had on GKE only; use gke.sh" ;;
    "") die "--type is missing; see --help" ;;
    *) die "--type $TYPE: expected v4-N, v5e-N, v5p-N or v6e-N, such as v5e-16" ;;
  esac
  printf '%s' "${TYPE/#v5e-/v5litepod-}"
}

runtime() { # the TPU software version for TYPE
  if [ -n "$RUNTIME" ]; then
    printf '%s' "$RUNTIME"
    return
  fi
  case "$TYPE" in
    v4-*) printf 'tpu-ubuntu2204-base' ;;
    v5e-*) printf 'v2-alpha-tpuv5-lite' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    *) die "--type $TYPE: no default --runtime for it; name one" ;;
  esac
}

nodes() { # the TPU VM of each slice
  if [ "$SLICES" = 1 ]; then
    printf '%s\n' "$NAME"
  else
    seq -f "$NAME-%g" 0 $((SLICES - 1))
  fi
}

place() { printf '%s\n' "--project=$PROJECT" "--zone=$ZONE"; }

quoted() { # a command as it would be typed
  printf '%q ' "$@"
  printf '\n'
}

in_ascii() { # words as a shell reads them, on one line and in ASCII
  (LC_ALL=C && printf -v line '%q ' "$@" && printf '%s' "${line% }")
}

rendered() { # FILE COMMAND: its text without the comment at its top, each @KEY@ being that of FIELD, and then @COMMAND@
  local text key
  text=$(sed '/^# /d' "$1")
  for key in "${!FIELD[@]}"; do
    text=${text//"@$key@"/"${FIELD[$key]}"}
  done
  printf '%s\n' "${text//"@COMMAND@"/"$2"}"
}

check_shares() { # of a command that runs as several shares
  [ -n "$SHARES" ] || die "--shares is missing; see --help"
  [ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, as in: -- lmjax sweep isoflop.py --workdir runs/isoflop"
  local word
  for word in "${COMMAND[@]}"; do
    [[ $word != --shard && $word != --shard=* ]] || die "$word: every share is given its own --shard; leave it out"
  done
}

check_own_workdirs() { # a bucket has no lock, and of two writers of one file the last wins
  [[ $SHARES = 1 || ${COMMAND[1]:-} != sweep || ${COMMAND[*]} = *'{share}'* ]] ||
    die "in a bucket every share needs a workdir of its own: put {share} into it, as in --workdir '/bucket/isoflop-{share}'"
}

retry() { # WHAT COMMAND...: carries a command out, several times if it fails; errors call it WHAT
  local what=$1 attempt
  shift
  for ((attempt = 1; ; attempt++)); do
    "$@" && return
    [ "$attempt" -lt "$ATTEMPTS" ] || fail "failed $ATTEMPTS times: $what"
    printf 'attempt %d of %d failed; again in %d s\n' "$attempt" "$ATTEMPTS" "$POLL_SECONDS" >&2
    sleep "$POLL_SECONDS"
  done
}

run() { # the same for a command as it is; with --dry-run prints it
  if $DRY_RUN; then quoted "$@"; else retry "$(quoted "$@")" "$@"; fi
}

tpu() { # tpu VERB NODE ...: gcloud compute tpus tpu-vm, in this project and zone
  local verb=$1 node=$2
  shift 2
  run gcloud compute tpus tpu-vm "$verb" "$node" --project="$PROJECT" --zone="$ZONE" "$@"
}

on_every_host() { # on_every_host NODE SCRIPT: on all workers of a slice at once
  tpu ssh "$1" --worker=all --command="$2"
}

# The scripts below are for a host. A job is known by the last argument of its shell: a number in job.pid that the host,
# started again, has given to another process is not taken for it.
# shellcheck disable=SC2016
JOB_RUNS='grep -qszx lmjax-job "/proc/$(cat ~/job.pid 2>/dev/null)/cmdline"'

stop_job() { # ends what launch.sh started, on every host of a slice; the next job needs the chips that it holds
  on_every_host "$1" "if $JOB_RUNS; then
job=\$(cat ~/job.pid); kill -TERM -- -\$job
for second in \$(seq 120); do kill -0 -- -\$job 2>/dev/null || break; sleep 1; done
kill -KILL -- -\$job 2>/dev/null
fi; rm -f ~/job.pid"
}

mount_bucket() { # prints what mounts --bucket where it is not: a host that was started again has lost the mount
  [ -n "$BUCKET" ] || return 0
  cat <<EOF
if ! mountpoint -q ~/bucket; then
if ! command -v gcsfuse >/dev/null; then
source=packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
curl -fsS https://\$source/doc/apt-key.gpg | sudo tee \$key >/dev/null
echo "deb [signed-by=\$key] https://\$source gcsfuse-\$(lsb_release -c -s) main" |
sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
sudo apt-get -qq update
sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse
fi
fusermount -uz ~/bucket 2>/dev/null || true # what a gcsfuse that died has left
mkdir -p ~/bucket
gcsfuse --implicit-dirs $BUCKET ~/bucket
fi
EOF
}

state() { # READY, PREEMPTED, ... of a node, ACTIVE, FAILED, ... of a queued resource; ABSENT where there is none
  local kind=$1 name=$2 format="value(state)" out
  [ "$kind" = tpu-vm ] || format="value(state.state)"
  if out=$(gcloud compute tpus "$kind" describe "$name" --project="$PROJECT" --zone="$ZONE" --format="$format" 2>&1); then
    printf '%s' "${out##*$'\n'}" # gcloud may warn of something first
  elif [[ $out == *NOT_FOUND* || $out == *"not found"* ]]; then
    printf 'ABSENT'
  else
    fail "cannot describe $kind $name: $out"
  fi
}
