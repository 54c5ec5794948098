#!/usr/bin/env bash
# Installs lmjax, as committed in this checkout, on every host of every slice. Running it again updates it.
# shellcheck source=cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

USAGE="usage: bootstrap.sh --name NAME --project PROJECT --zone ZONE [options]
The committed files of this checkout go to ~/lmjax, a Python 3.12 environment with the pinned packages to ~/lmjax/.venv.
example: bootstrap.sh --name gpt2 --project my-project --zone us-west4-a --bucket my-bucket"

parse "$@"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if $DRY_RUN; then archive=/tmp/lmjax.tar.gz; else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  archive=$scratch/lmjax.tar.gz
fi
behind=$(git -C "$checkout" status --porcelain | head -n 21)
if [ -n "$behind" ]; then
  printf 'bootstrap.sh: not committed, so these stay behind (the last commit is sent):\n' >&2
  head -n 20 <<<"$behind" >&2
  [ "$(wc -l <<<"$behind")" -le 20 ] || printf '   ... and more; see git status\n' >&2
fi
run git -C "$checkout" archive --format=tar.gz --output="$archive" HEAD

# The hosts' own Python is older than lmjax needs: uv brings one.
# The file .installed says that all of it was done.
install='set -eo pipefail
mkdir -p ~/lmjax
rm -f ~/lmjax/.installed
tar -xzf ~/lmjax.tar.gz -C ~/lmjax
cd ~/lmjax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[tpu]"
touch .installed'
for node in $(nodes); do
  tpu scp "$archive" "$node:lmjax.tar.gz" --worker=all
  on_every_host "$node" "$install
$(mount_bucket)"
done
