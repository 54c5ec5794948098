#!/usr/bin/env bash
# Runs one command on a TPU slice, or on several, of a GKE cluster with JobSet; or every line of a file on its own; or the
# shares of one command.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: gke.sh --name NAME --type TYPE --topology AxB[xC] --image IMAGE --bucket BUCKET [options] -- COMMAND
       gke.sh ... --sweep FILE [options]
       gke.sh ... --shares N [options] -- lmjax sweep RECIPE --workdir '/bucket/NAME-{share}'
       gke.sh --queue QUEUE --quota CHIPS --type TYPE --topology AxB[xC] [--spot]

options:
  --name NAME          of the JobSet
  --type TYPE          v4, v5e, v5p, v6e or tpu7x
  --topology AxB[xC]   chips along each axis of a slice, such as 4x4, or 8x8x8 for v4, v5p and tpu7x
  --image IMAGE        built from tpu_setup/Dockerfile
  --bucket BUCKET      Cloud Storage bucket, mounted at /bucket: workdirs belong there
  --slices N           slices joined over the data-centre network (default 1)
  --spot               on spot nodes
  --reservation NAME   on nodes of this reservation alone
  --restarts N         how often a failed or preempted job starts again (default 100); a command that is wrong, which
                       lmjax says by the exit code 2, does not
  --account NAME       Kubernetes service account that may use the bucket (default: default)
  --sweep FILE         one COMMAND a line, with quotes as in a shell, of which nothing is expanded; empty lines and
                       those that begin with # are passed over; the others become the JobSets NAME-0, NAME-1, ...,
                       which run beside each other
  --shares N           one indexed job: index I runs COMMAND --shard I+1/N on a slice of one host, and each {share} in
                       its words becomes I+1. A preempted share starts again, one that fails too, at most --restarts
                       times; exit codes 1 (a run of the sweep failed: its row says so) and 2 end the share, and the
                       others go on
  --at-once N          shares that run at once (default: all)
  --queue QUEUE        the Kueue queue in which the JobSet waits for quota
  --quota CHIPS        with --queue, without a command: make this queue, for so many chips of --type and --topology
  --delete             delete the JobSet, or those of the sweep, instead of creating them
  --poll-seconds N     between two attempts (default 30)
  --attempts N         times a command of the cluster is tried (default 3)
  --dry-run            print the command and the manifest, touch nothing
example: gke.sh --name gpt2 --type v5e --topology 4x4 --image IMAGE --bucket my-bucket -- \\
           lmjax run gpt2 --workdir /bucket/gpt2"

SWEEP="" DELETE=false QUEUE="" QUOTA="" TEMPLATE=jobset.yaml
declare -A FIELD=([TOPOLOGY]="" [IMAGE]="" [BUCKET]="" [SLICES]=1 [RESTARTS]=100 [ACCOUNT]=default [SPOT]="" [TOLERATIONS]="" [RESERVATION]="" [LABELS]="" [AT_ONCE]="")
here=$(dirname "${BASH_SOURCE[0]}")
SPOT_TOLERATION='
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule'

while [ "$#" -gt 0 ]; do
  case "$1" in
    --name) NAME=$(value_of "$1" "$@") ;;
    --type) TYPE=$(value_of "$1" "$@") ;;
    --topology) FIELD[TOPOLOGY]=$(value_of "$1" "$@") ;;
    --image) FIELD[IMAGE]=$(value_of "$1" "$@") ;;
    --bucket) FIELD[BUCKET]=$(value_of "$1" "$@") ;;
    --slices) FIELD[SLICES]=$(number_of "$1" "$@") ;;
    --shares) SHARES=$(number_of "$1" "$@") ;;
    --at-once) FIELD[AT_ONCE]=$(number_of "$1" "$@") ;;
    --queue) QUEUE=$(value_of "$1" "$@") ;;
    --quota) QUOTA=$(number_of "$1" "$@") ;;
    --restarts) FIELD[RESTARTS]=$(value_of "$1" "$@") ;;
    --account) FIELD[ACCOUNT]=$(value_of "$1" "$@") ;;
    --sweep) SWEEP=$(value_of "$1" "$@") ;;
    --poll-seconds) POLL_SECONDS=$(number_of "$1" "$@") ;;
    --attempts) ATTEMPTS=$(number_of "$1" "$@") ;;
    --reservation) RESERVATION=$(value_of "$1" "$@") ;;
    --spot)
      FIELD[SPOT]=$'\n                cloud.google.com/gke-spot: "true"'
      FIELD[TOLERATIONS]=$SPOT_TOLERATION; shift; continue ;;
    --delete) DELETE=true; shift; continue ;;
    --dry-run) DRY_RUN=true; shift; continue ;;
    --help | -h) printf '%s\n' "$USAGE"; exit 0 ;;
    --) shift; COMMAND=("$@"); break ;;
    *) die "$1: unknown option; see --help" ;;
  esac
  shift 2
done

[ -z "$QUOTA" ] || [ -n "$QUEUE" ] || die "--quota $QUOTA: expected --queue, the name of the queue to make"
[[ -n $QUOTA || $NAME =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || die "--name '$NAME': expected lower-case letters, digits and '-'"
[[ ${FIELD[RESTARTS]} =~ ^[0-9]+$ ]] || die "--restarts ${FIELD[RESTARTS]}: expected a whole number"
[[ ${FIELD[ACCOUNT]} =~ ^[a-z0-9][-a-z0-9]*$ ]] || die "--account ${FIELD[ACCOUNT]}: not the name of a service account"
if [ -n "$RESERVATION" ]; then
  [[ $RESERVATION =~ $RESOURCE_NAME ]] || die "--reservation '$RESERVATION': not the name of a reservation"
  [ -z "${FIELD[SPOT]}" ] || die "--reservation $RESERVATION: spot nodes are not reserved; leave out --spot"
  FIELD[RESERVATION]="
                cloud.google.com/reservation-name: \"$RESERVATION\"
                cloud.google.com/reservation-affinity: \"specific\""
fi
if [ -n "$QUEUE" ]; then
  [[ $QUEUE =~ $RESOURCE_NAME ]] || die "--queue '$QUEUE': expected lower-case letters, digits and '-'"
  FIELD[LABELS]="
  labels:
    kueue.x-k8s.io/queue-name: $QUEUE"
fi
if ! $DELETE && [ -z "$QUOTA" ]; then
  [[ ${FIELD[IMAGE]} =~ ^[-a-zA-Z0-9._/:@]+$ ]] || die "--image '${FIELD[IMAGE]}': expected an image such as HOST/PROJECT/lmjax:TAG"
  [[ ${FIELD[BUCKET]} =~ $BUCKET_NAME ]] || die "--bucket '${FIELD[BUCKET]}': not the name of a bucket"
fi
if [ -n "$SWEEP" ]; then
  [ ! -d "$SWEEP" ] || die "--sweep $SWEEP: a folder; expected a file with one command a line"
  [ -r "$SWEEP" ] || die "--sweep $SWEEP: no such file, or not readable; expected one command a line"
fi
[ -z "$SWEEP" ] || [ "${#COMMAND[@]}" = 0 ] || die "give --sweep FILE or a command behind --, not both"
[ -n "$SWEEP$QUOTA" ] || $DELETE || [ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, or give --sweep FILE"

FLAT="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" # of v5e and v6e
DEEP="2x2x1 2x2x2 2x2x4 2x4x4"            # of the others, and multiples of 4 chips along each axis, the shortest first

check_topology() { # LONGEST: the slices that there are, those of lmjax/plan/slices.py among them
  local topology=${FIELD[TOPOLOGY]} axis before=0
  [[ $topology =~ ^[1-9][0-9]?(x[1-9][0-9]?){1,2}$ ]] || die "--topology '$topology': expected AxB or AxBxC"
  if [ "$1" = flat ]; then
    [[ $topology != *x*x* ]] || die "--topology $topology: $TYPE slices have two axes"
    [[ " $FLAT " == *" $topology "* ]] || die "--topology $topology: there is no such $TYPE slice; expected one of $FLAT"
    return
  fi
  [[ $topology == *x*x* ]] || die "--topology $topology: $TYPE slices have three axes"
  [[ " $DEEP " != *" $topology "* ]] || return 0
  for axis in ${topology//x/ }; do
    if [ $((axis % 4)) != 0 ] || [ "$axis" -lt "$before" ] || [ "$axis" -gt "$1" ]; then
      die "--topology $topology: there is no such $TYPE slice; expected one of $DEEP, or axes that are multiples of 4, at \
most $1, the shortest first, such as 4x4x8"
    fi
    before=$axis
  done
}

set_hardware() { # the accelerator, the hosts of a slice and the chips of a host
  local chips longest=24
  case "$TYPE" in
    v4) FIELD[ACCELERATOR]=tpu-v4-podslice longest=16 ;;
    v5p) FIELD[ACCELERATOR]=tpu-v5p-slice ;;
    tpu7x) FIELD[ACCELERATOR]=tpu7x ;;
    v5e) FIELD[ACCELERATOR]=tpu-v5-lite-podslice longest=flat ;;
    v6e) FIELD[ACCELERATOR]=tpu-v6e-slice longest=flat ;;
    *) die "--type '$TYPE': expected v4, v5e, v5p, v6e or tpu7x" ;;
  esac
  check_topology "$longest"
  chips=$((${FIELD[TOPOLOGY]//x/*}))
  local of_host=4 # in a slice of several hosts
  if [ "$chips" -le 4 ] || [ "${FIELD[TOPOLOGY]}" = 2x4 ]; then of_host=$chips; fi
  FIELD[CHIPS]=$of_host FIELD[HOSTS]=$((chips / of_host))
}

as_yaml() { # words as a list of quoted YAML strings, in which Kubernetes finds no $(VARIABLE) of its own
  local word out=""
  for word in "$@"; do
    word=${word//\$/\$\$} # it reads two as one
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    word=${word//$'\r'/\\r}
    word=${word//$'\t'/\\t}
    word=${word//$'\xc2\x85'/\\N} # what ends a line in YAML beside \n
    word=${word//$'\xe2\x80\xa8'/\\L}
    word=${word//$'\xe2\x80\xa9'/\\P}
    [[ ! $word =~ [[:cntrl:]] ]] || die "$(quoted "$word"): a control character in a command; expected none but line ends and tabs"
    out+="\"$word\", "
  done
  printf '%s' "${out%, }"
}

set_shares() { # the job of --shares, whose pods have the command as one share of it
  [ -z "$SWEEP" ] || die "--shares $SHARES: splits one command; put it behind -- and leave out --sweep"
  check_shares
  check_own_workdirs
  [ "${FIELD[SLICES]}" = 1 ] || die "--shares $SHARES: every share runs on one host; leave out --slices"
  [ "${FIELD[HOSTS]}" = 1 ] || die "--topology ${FIELD[TOPOLOGY]}: a slice of ${FIELD[HOSTS]} hosts, and every share runs \
on one; expected at most 4 chips, or 2x4"
  TEMPLATE=shares.yaml FIELD[SHARES]=$SHARES
  [ "${FIELD[AT_ONCE]:-$((SHARES + 1))}" -lt "$SHARES" ] || FIELD[AT_ONCE]=$SHARES
  COMMAND=(bash /lmjax/tpu_setup/share.sh --shares "$SHARES" --index-from JOB_COMPLETION_INDEX -- "${COMMAND[@]}")
}

queue() { # prints the manifests of --quota
  FIELD[QUEUE]=$QUEUE FIELD[QUOTA]=$QUOTA
  [ -z "${FIELD[SPOT]}" ] || FIELD[SPOT]=$'\n    cloud.google.com/gke-spot: "true"'
  manifest "$QUEUE"
}

manifest() { # NAME WORDS...
  FIELD[NAME]=$1
  local command
  command=$(as_yaml "${@:2}") || exit
  rendered "$here/$TEMPLATE" "$command"
}

NAMES=() MANIFESTS=()

add() { # NAME WORDS...: notes a JobSet
  NAMES+=("$1")
  local text=""
  $DELETE || text=$(manifest "$@") || exit
  MANIFESTS+=("$text")
}

apply() { kubectl apply -f - <<<"$1"; }

submit() { # WHAT MANIFEST
  if $DELETE; then
    run kubectl delete jobset "${1#JobSet }" --ignore-not-found
  elif $DRY_RUN; then
    printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$2"
  else
    retry "kubectl apply of $1; once that is mended, the same command again leaves what is there as it is" \
      apply "$2"
  fi
}

read_sweep() { # adds a JobSet for every command
  local lines line number=0 words
  mapfile -t lines <"$SWEEP"
  for line in "${lines[@]}"; do
    number=$((number + 1))
    line=${line%$'\r'}
    line=${line#"${line%%[![:space:]]*}"}
    if [ -z "$line" ] || [[ $line == \#* ]]; then continue; fi
    # Quotes are heeded; nothing is expanded or executed.
    mapfile -d '' -t words < <(xargs printf '%s\0' <<<"$line" 2>/dev/null)
    wait $! || die "--sweep $SWEEP, line $number: cannot be split into words; close its quotes: $line"
    add "$NAME-${#NAMES[@]}" "${words[@]}"
  done
  [ "${#NAMES[@]}" -gt 0 ] || die "--sweep $SWEEP: holds no command; expected one a line"
}

# All that can be wrong is found before the first JobSet is submitted.
$DELETE || set_hardware
[ -n "$SHARES" ] || [ -z "${FIELD[AT_ONCE]}" ] || die "--at-once ${FIELD[AT_ONCE]}: expected --shares"
if [ -n "$QUOTA" ]; then
  ! $DELETE || die "--quota $QUOTA: leave it out to delete a JobSet; a queue is deleted by kubectl"
  TEMPLATE=kueue.yaml
  text=$(queue) || exit
  submit "queue $QUEUE" "$text"
  exit
fi
$DELETE || [ -z "$SHARES" ] || set_shares
if [ -n "$SWEEP" ]; then read_sweep; else add "$NAME" "${COMMAND[@]}"; fi
for index in "${!NAMES[@]}"; do
  submit "JobSet ${NAMES[$index]}" "${MANIFESTS[$index]}"
done
