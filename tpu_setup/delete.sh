#!/usr/bin/env bash
# Deletes the slices, and the queued resource that made them. Nothing is left that costs money; buckets stay.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: delete.sh --name NAME --project PROJECT --zone ZONE [options]
Does nothing where there is nothing.
example: delete.sh --name gpt2 --project my-project --zone us-west4-a --provision queued-spot"

parse "$@"
if queued; then kind=queued-resources force=(--force); else kind=tpu-vm force=(); fi
found=""
$DRY_RUN || found=$(state "$kind" "$NAME") || exit
if [ "$found" = ABSENT ]; then
  printf '%s does not exist\n' "$NAME"
  exit 0
fi
run gcloud compute tpus "$kind" delete "$NAME" --project="$PROJECT" --zone="$ZONE" "${force[@]}" --quiet
