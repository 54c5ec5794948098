#!/usr/bin/env bash
# Deletes the slices, and the queued resource that made them. Nothing is left that costs money; buckets stay.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: delete.sh --name NAME --project PROJECT --zone ZONE [options]
Deletes whatever bears the name, however it was provisioned. Does nothing where there is nothing.
example: delete.sh --name gpt2 --project my-project --zone us-west4-a"

parse "$@"
absent=true
# The queued resource first: it takes its slices with it.
for kind in "${KINDS[@]}"; do
  found=""
  $DRY_RUN || found=$(state "$kind" "$NAME") || exit
  case "$found" in
    ABSENT) continue ;;
    DELETING) printf '%s: the %s is being deleted already\n' "$NAME" "$(in_words "$kind")" ;;
    *)
      force=()
      [ "$kind" = tpu-vm ] || force=(--force)
      run gcloud compute tpus "$kind" delete "$NAME" --project="$PROJECT" --zone="$ZONE" "${force[@]}" --quiet ;;
  esac
  absent=false
done
if $absent; then printf '%s does not exist\n' "$NAME"; fi
