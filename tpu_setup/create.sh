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
spot=()
[[ $PROVISION == *spot ]] && spot=(--spot)

create_node() {
  run gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
    --accelerator-type="$api_type" --version="$api_runtime" "${spot[@]}"
}

create_queued() {
  local nodes=(--node-id="$NAME")
  [ "$SLICES" = 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "${nodes[@]}" \
    --accelerator-type="$api_type" --runtime-version="$api_runtime" "${spot[@]}"
}

wait_for() { # KIND WANTED
  local now before=""
  while true; do
    now=$(state "$1" "$NAME") || exit
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

found=ABSENT
if ! $DRY_RUN; then
  for kind in "${KINDS[@]}"; do
    found=$(state "$kind" "$NAME") || exit
    [ "$found" = ABSENT ] || break
  done
fi
if [ "$found" != ABSENT ]; then
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
