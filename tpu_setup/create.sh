#!/usr/bin/env bash
# Creates a TPU VM, or one or several slices through a queued resource, and waits until it can be used.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: create.sh --name NAME --project PROJECT --zone ZONE --type TYPE [options]
Does nothing where it exists already.
example: create.sh --name gpt2 --project my-project --zone us-west4-a --type v5e-16 --provision spot"

parse "$@"
api_type=$(accelerator) || exit
api_runtime=$(runtime) || exit
mapfile -t where < <(place)
more=()
[[ $PROVISION == *spot ]] && more+=(--spot)
[ -z "$NETWORK" ] || more+=(--network="$NETWORK")
[ -z "$SUBNETWORK" ] || more+=(--subnetwork="$SUBNETWORK")

asked_for() { # COMMAND...: asks for what was asked for already only where that did not arrive: its answer may be lost
  "$@" || { [ -n "$(exists)" ] && printf '%s: asked for, although the answer was lost\n' "$NAME"; }
}

request() { # COMMAND...: carries it out, or prints it
  if $DRY_RUN; then quoted "$@"; else retry "$(quoted "$@")" asked_for "$@"; fi
}

create_node() {
  request gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
    --accelerator-type="$api_type" --version="$api_runtime" "${more[@]}"
}

create_queued() {
  local nodes=(--node-id="$NAME")
  [ "$SLICES" = 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  local gcloud=(gcloud)
  [ -z "$RESERVATION" ] || gcloud+=(alpha) more+=(--reservation="$RESERVATION") # the alpha command alone knows it
  request "${gcloud[@]}" compute tpus queued-resources create "$NAME" "${where[@]}" "${nodes[@]}" \
    --accelerator-type="$api_type" --runtime-version="$api_runtime" "${more[@]}"
}

exists() { # the kind of what bears the name; nothing where nothing does
  local kind found
  for kind in "${KINDS[@]}"; do
    found=$(state "$kind" "$NAME") || exit
    [ "$found" = ABSENT ] || { printf '%s' "$kind" && return; }
  done
}

wait_for() { # KIND WANTED: a look that fails now and then ends nothing, for hours may pass until it is there
  local now before="" failed=0
  while true; do
    if ! now=$(state "$1" "$NAME"); then
      failed=$((failed + 1))
      [ "$failed" -lt "$ATTEMPTS" ] || exit 1
      sleep "$POLL_SECONDS"
      continue
    fi
    failed=0
    [ "$now" = "$before" ] || printf '%s: %s\n' "$NAME" "$now"
    before=$now
    case "$now" in
      "$2") return ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED | ABSENT)
        fail "$NAME is $now; look at the quota and the zone, run delete.sh, and try again" ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

kind=""
$DRY_RUN || kind=$(exists) || exit
if [ -n "$kind" ]; then
  printf '%s exists already, as a %s\n' "$NAME" "$(in_words "$kind")"
  [ "$SLICES" = 1 ] || [ "$kind" = queued-resources ] ||
    die "--slices $SLICES: $NAME is a single TPU VM; choose another --name, or run delete.sh"
elif queued; then
  kind=queued-resources
  create_queued
else
  kind=tpu-vm
  create_node
fi
if [ "$kind" = tpu-vm ]; then wanted=READY; else wanted=ACTIVE; fi
$DRY_RUN || wait_for "$kind" "$wanted"
