#!/usr/bin/env bash
# Runs one command on a TPU slice, or on several, of a GKE cluster with JobSet; or every line of a sweep on its own.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: gke.sh --name NAME --type TYPE --topology AxB[xC] --image IMAGE --bucket BUCKET [options] -- COMMAND
       gke.sh ... --sweep FILE [options]

options:
  --name NAME          of the JobSet
  --type TYPE          v4, v5e, v5p, v6e or tpu7x
  --topology AxB[xC]   chips along each axis of a slice, such as 4x4, or 8x8x8 for v4, v5p and tpu7x
  --image IMAGE        built from tpu_setup/Dockerfile
  --bucket BUCKET      Cloud Storage bucket, mounted at /bucket: workdirs belong there
  --slices N           slices joined over the data-centre network (default 1)
  --spot               on spot nodes
  --restarts N         how often a failed or preempted job starts again (default 100)
  --account NAME       Kubernetes service account that may use the bucket (default: default)
  --sweep FILE         one COMMAND a line, with quotes as in a shell, of which nothing is expanded; empty lines and
                       those that begin with # are passed over; the others become the JobSets NAME-0, NAME-1, ...,
                       which run beside each other
  --delete             delete the JobSet, or those of the sweep, instead of creating them
  --poll-seconds N     between two attempts (default 30)
  --attempts N         times a command of the cluster is tried (default 3)
  --dry-run            print the command and the manifest, touch nothing
example: gke.sh --name gpt2 --type v5e --topology 4x4 --image IMAGE --bucket my-bucket -- \\
           lmjax run gpt2 --workdir /bucket/gpt2"

SWEEP="" DELETE=false
declare -A FIELD=([TOPOLOGY]="" [IMAGE]="" [BUCKET]="" [SLICES]=1 [RESTARTS]=100 [ACCOUNT]=default [SPOT]="")
here=$(dirname "${BASH_SOURCE[0]}")

while [ "$#" -gt 0 ]; do
  case "$1" in
    --name) NAME=$(value_of "$1" "$@") ;;
    --type) TYPE=$(value_of "$1" "$@") ;;
    --topology) FIELD[TOPOLOGY]=$(value_of "$1" "$@") ;;
    --image) FIELD[IMAGE]=$(value_of "$1" "$@") ;;
    --bucket) FIELD[BUCKET]=$(value_of "$1" "$@") ;;
    --slices) FIELD[SLICES]=$(number_of "$1" "$@") ;;
    --restarts) FIELD[RESTARTS]=$(value_of "$1" "$@") ;;
    --account) FIELD[ACCOUNT]=$(value_of "$1" "$@") ;;
    --sweep) SWEEP=$(value_of "$1" "$@") ;;
    --poll-seconds) POLL_SECONDS=$(number_of "$1" "$@") ;;
    --attempts) ATTEMPTS=$(number_of "$1" "$@") ;;
    --spot) FIELD[SPOT]=$'\n                cloud.google.com/gke-spot: "true"'; shift; continue ;;
    --delete) DELETE=true; shift; continue ;;
    --dry-run) DRY_RUN=true; shift; continue ;;
    --help | -h) printf '%s\n' "$USAGE"; exit 0 ;;
    --) shift; COMMAND=("$@"); break ;;
    *) die "$1: unknown option; see --help" ;;
  esac
  shift 2
done

[[ $NAME =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || die "--name '$NAME': expected lower-case letters, digits and '-'"
[[ ${FIELD[RESTARTS]} =~ ^[0-9]+$ ]] || die "--restarts ${FIELD[RESTARTS]}: expected a whole number"
[[ ${FIELD[ACCOUNT]} =~ ^[a-z0-9][-a-z0-9]*$ ]] || die "--account ${FIELD[ACCOUNT]}: not the name of a service account"
if ! $DELETE; then
  [[ ${FIELD[IMAGE]} =~ ^[-a-zA-Z0-9._/:@]+$ ]] || die "--image '${FIELD[IMAGE]}': expected an image such as HOST/PROJECT/lmjax:TAG"
  [[ ${FIELD[BUCKET]} =~ $BUCKET_NAME ]] || die "--bucket '${FIELD[BUCKET]}': not the name of a bucket"
fi
if [ -n "$SWEEP" ]; then
  [ ! -d "$SWEEP" ] || die "--sweep $SWEEP: a folder; expected a file with one command a line"
  [ -r "$SWEEP" ] || die "--sweep $SWEEP: no such file, or not readable; expected one command a line"
fi
[ -z "$SWEEP" ] || [ "${#COMMAND[@]}" = 0 ] || die "give --sweep FILE or a command behind --, not both"
[ -n "$SWEEP" ] || $DELETE || [ "${#COMMAND[@]}" -gt 0 ] || die "no command; put it behind --, or give --sweep FILE"

chips_of_slice() {
  [[ ${FIELD[TOPOLOGY]} =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology '${FIELD[TOPOLOGY]}': expected AxB or AxBxC"
  printf '%d' $((${FIELD[TOPOLOGY]//x/*}))
}

set_hardware() { # the accelerator, the hosts of a slice and the chips of a host
  local chips axes
  chips=$(chips_of_slice) || exit
  axes=$(grep -o x <<<"${FIELD[TOPOLOGY]}" | wc -l)
  case "$TYPE" in
    v4) FIELD[ACCELERATOR]=tpu-v4-podslice axes=$((axes - 1)) ;;
    v5p) FIELD[ACCELERATOR]=tpu-v5p-slice axes=$((axes - 1)) ;;
    tpu7x) FIELD[ACCELERATOR]=tpu7x axes=$((axes - 1)) ;;
    v5e) FIELD[ACCELERATOR]=tpu-v5-lite-podslice ;;
    v6e) FIELD[ACCELERATOR]=tpu-v6e-slice ;;
    *) die "--type '$TYPE': expected v4, v5e, v5p, v6e or tpu7x" ;;
  esac
  [ "$axes" = 1 ] || die "--topology ${FIELD[TOPOLOGY]}: $TYPE slices have $([[ $TYPE == v[56]e ]] && echo two || echo three) axes"
  local of_host=4 # in a slice of several hosts
  if [ "$chips" -le 4 ] || [ "${FIELD[TOPOLOGY]}" = 2x4 ]; then of_host=$chips; fi
  [ $((chips % of_host)) = 0 ] || die "--topology ${FIELD[TOPOLOGY]}: $chips chips are not whole hosts of $of_host"
  FIELD[CHIPS]=$of_host FIELD[HOSTS]=$((chips / of_host))
}

as_yaml() { # words as a list of quoted YAML strings
  local word out=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    out+="\"${word//$'\r'/\\r}\", "
  done
  printf '%s' "${out%, }"
}

manifest() { # NAME WORDS...
  local text name=$1 key
  shift
  text=$(grep -v '^#' "$here/jobset.yaml")
  local command
  command=$(as_yaml "$@")
  for key in "${!FIELD[@]}"; do
    text=${text//"@$key@"/"${FIELD[$key]}"}
  done
  text=${text//"@NAME@"/"$name"}
  printf '%s\n' "${text//"@COMMAND@"/"$command"}"
}

NAMES=() MANIFESTS=()

add() { # NAME WORDS...: notes a JobSet
  NAMES+=("$1")
  if $DELETE; then MANIFESTS+=(""); else MANIFESTS+=("$(manifest "$@")"); fi
}

apply() { kubectl apply -f - <<<"$1"; }

submit() { # NAME MANIFEST
  if $DELETE; then
    run kubectl delete jobset "$1" --ignore-not-found
  elif $DRY_RUN; then
    printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$2"
  else
    retry "kubectl apply of the JobSet $1; once that is mended, the same command again leaves what is there as it is" \
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
if [ -n "$SWEEP" ]; then read_sweep; else add "$NAME" "${COMMAND[@]}"; fi
for index in "${!NAMES[@]}"; do
  submit "${NAMES[$index]}" "${MANIFESTS[$index]}"
done
