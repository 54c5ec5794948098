#!/usr/bin/env bash
# Submits the shares of a sweep, or of a corpus, as an array of Slurm jobs.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: slurm.sh --name NAME --shares N [options] -- lmjax sweep RECIPE --workdir DIR
The job of array index I runs COMMAND --shard I+1/N in the folder of this call, with lmjax from .venv in this checkout;
each {share} in its words becomes I+1. A preempted job is queued again by Slurm, one at its time limit by itself; both
resume. Other failures are not repeated: the same call runs what is left.

options:
  --name NAME          of the jobs; their output is in NAME-INDEX.log
  --shares N           jobs of the array
  --at-once N          jobs that run at once (default: all)
  --time TIME          limit of each, as Slurm reads it, such as 8:00:00 (default: the partition's)
  --option WORD        another option of sbatch, such as --option --partition=gpu --option --gres=gpu:1
  --requeues N         how often a job that meets its time limit is queued again (default 100)
  --dry-run            print the script that is submitted, touch nothing
example: slurm.sh --name isoflop --shares 16 --time 8:00:00 --option --gres=gpu:1 -- \\
           lmjax sweep isoflop.py --workdir /scratch/isoflop"

declare -A FIELD=([AT_ONCE]="" [REQUEUES]=100 [OPTIONS]="")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

option() { # WORD: a line of the script that Slurm reads
  [[ $1 =~ ^--?[-a-zA-Z0-9_=:.,/@%+]+$ ]] || die "--option '$1': expected one word, an option of sbatch, such as --gres=gpu:1"
  FIELD[OPTIONS]+=$'\n'"#SBATCH $1"
}

while [ "$#" -gt 0 ]; do
  case "$1" in
    --name) NAME=$(value_of "$1" "$@") ;;
    --shares) SHARES=$(number_of "$1" "$@") ;;
    --at-once) FIELD[AT_ONCE]=%$(number_of "$1" "$@") ;;
    --requeues) FIELD[REQUEUES]=$(number_of "$1" "$@") ;;
    --time)
      time=$(value_of "$1" "$@")
      [[ $time =~ ^[0-9]+([-:][0-9]+){0,3}$ ]] || die "--time '$time': expected a time such as 8:00:00"
      option "--time=$time" ;;
    --option)
      [ "$#" -ge 2 ] || die "$1 needs a value, and nothing follows it; see --help"
      option "$2" ;;
    --dry-run) DRY_RUN=true; shift; continue ;;
    --help | -h) printf '%s\n' "$USAGE"; exit 0 ;;
    --) shift; COMMAND=("$@"); break ;;
    *) die "$1: unknown option; see --help" ;;
  esac
  shift 2
done
[[ $NAME =~ ^[a-zA-Z]([-_a-zA-Z0-9]{0,60})$ ]] || die "--name '$NAME': expected letters, digits, '-' and '_', a letter first"
check_shares

FIELD[NAME]=$NAME FIELD[SHARES]=$SHARES FIELD[LAST]=$((SHARES - 1))
FIELD[CHECKOUT]=$(in_ascii "${here%/*}")
text=$(rendered "$here/slurm_array.sbatch" "$(in_ascii "${COMMAND[@]}")")

submit() { sbatch <<<"$text"; }

if $DRY_RUN; then printf "sbatch <<'END_OF_JOB'\n%s\nEND_OF_JOB\n" "$text"; else
  submit || fail "sbatch took no job; its message is above" # asked once: an answer that was lost would be a second array
fi
