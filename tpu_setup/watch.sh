#!/usr/bin/env bash
# Follows the log of one host until the terminal is closed.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: watch.sh --name NAME --project PROJECT --zone ZONE [--slice K] [--worker N] [options]
Worker 0 of slice 0, the default, is the one that writes progress.
example: watch.sh --name gpt2 --project my-project --zone us-west4-a"

parse "$@"
[[ $WORKER =~ ^[0-9]+$ ]] || die "--worker $WORKER: expected a host's number, counted from 0"
[[ $SLICE =~ ^(0|[1-9][0-9]*)$ && $SLICE -lt $SLICES ]] ||
  die "--slice $SLICE: expected a slice's number, counted from 0, of --slices $SLICES"
mapfile -t slices < <(nodes)
tpu ssh "${slices[$SLICE]}" --worker="$WORKER" --command='tail -n 100 -F ~/job.log'
